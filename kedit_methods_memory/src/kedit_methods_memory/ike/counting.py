"""What texts take in tokens, so that what stands before a prompt can be cut to the window without a tokenizer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from kedit_core.forward import TokenBoundary


def piece_tokens(boundary: TokenBoundary, pieces: Sequence[str]) -> list[int]:
    """Tokens of each piece in the text that the pieces make together, tokenised whole.

    Special tokens in front count with the first piece. A token across a border counts with the piece it begins in. A
    tokenizer without offsets counts each piece by itself.
    """
    text = "".join(pieces)
    if not text:
        return [0] * len(pieces)
    encoded = boundary.prompt(text)
    if encoded.offsets is None:
        return [len(boundary.prompt(piece).ids) if piece else 0 for piece in pieces]
    ends = list(accumulate(map(len, pieces)))
    counts = [0] * len(pieces)
    seen = 0
    for start, end in encoded.offsets:
        # a special token stands for no characters, and counts where it is
        seen = start if end > start else seen
        counts[min(bisect_left(ends, seen + 1), len(pieces) - 1)] += 1
    return counts
