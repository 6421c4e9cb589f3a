"""Text from the model itself, for those who have no corpus: what the model writes is close to what it was trained on.

Each row starts with one token drawn evenly from the vocabulary (after the tokenizer's own first token, if it adds one)
and goes on with samples from the model's 100 likeliest tokens, up to 128 tokens. Drawn from the unedited model with a
seed of its own, so the same statistic comes out for every edit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import torch

from kedit_core.editing import EditContext
from kedit_core.errors import MethodError
from kedit_core.forward import TokenBoundary, TopK, generate_ids

logger = logging.getLogger(__name__)

TOP_K = 100
LENGTH = 128
_ROWS = 32
_TRIAL = 4  # tokens of the run that is timed for the estimate
_PATIENCE = 16  # times the rows that would be enough if none ended early


def sample_rows(context: EditContext, wanted: int, seed: int, skip_first: bool = False) -> list[Sequence[int]]:
    """Token rows of at least ``wanted`` tokens in all, written by the model as it stands.

    ``skip_first``: rows' first tokens do not count.

    An encoder-decoder's decoder writes them, after one drawn token in its encoder; they are then read by its encoder.
    The time it will take is said first, from a short trial. Raises MethodError when the model hardly writes anything.
    """
    generator = torch.Generator().manual_seed(seed)
    length = min(LENGTH, context.adapter.max_positions or LENGTH)
    most = max(-(-wanted // length) * _PATIENCE, _PATIENCE * _ROWS)
    rows: list[Sequence[int]] = []
    count = 0
    told = f"{wanted} tokens of text from the model, {_estimate(context, wanted, length)}"
    logger.info("%s", told)
    with context.progress(told, total=float(wanted)) as step:
        while count < wanted and len(rows) < most:
            new = _write(context, _first_tokens(context, _ROWS, generator), length, generator)
            rows += new
            count += (tokens := sum(len(row) - skip_first for row in new))
            step.advance(tokens)
    if count < wanted:
        raise MethodError(
            f"the model wrote {count} tokens in {len(rows)} rows where its statistics need {wanted}; "
            "give a text with --corpus, statistics with --stats, or mom2_adjustment=false"
        )
    return rows


def _estimate(context: EditContext, wanted: int, length: int) -> str:
    started = time.monotonic()
    generator = torch.Generator().manual_seed(0)
    _write(context, _first_tokens(context, _ROWS, generator), _TRIAL, generator)
    seconds = (time.monotonic() - started) * (length / _TRIAL) * -(-wanted // (_ROWS * length))
    return f"about {seconds:.0f} s" if seconds < 120 else f"about {seconds / 60:.0f} min"


def _first_tokens(context: EditContext, rows: int, generator: torch.Generator) -> list[tuple[int, ...]]:
    tokenizer = context.tokenizer
    special, known = set(tokenizer.all_special_ids), context.adapter.vocab_size
    ordinary = [i for i in sorted(tokenizer.get_vocab().values()) if i not in special and i < known]
    drawn = torch.randint(len(ordinary), (rows,), generator=generator).tolist()
    # the special tokens that the tokenizer puts around any text, with the drawn token in their middle
    before, after = _frame(context.tokens)
    return [(*before, ordinary[i], *after) for i in drawn]


def _frame(tokens: TokenBoundary) -> tuple[tuple[int, ...], tuple[int, ...]]:
    encoded = tokens.prompt("a")
    real = [i for i, (start, end) in enumerate(encoded.offsets or ((0, 1),)) if start < end]
    return encoded.ids[: real[0]], encoded.ids[real[-1] + 1 :]


def _write(
    context: EditContext, prompts: Sequence[Sequence[int]], length: int, generator: torch.Generator
) -> list[Sequence[int]]:
    new = max(length - max(len(prompt) for prompt in prompts), 1)
    written = generate_ids(context.model, context.adapter, context.tokens, prompts, new, sampler=TopK(TOP_K, generator))
    if context.adapter.is_encoder_decoder:
        return [tuple(row) for row in written if len(row)]
    return [(*prompt, *row) for prompt, row in zip(prompts, written, strict=True)]
