"""The token boundary: the one place where text becomes token ids, and where a span of text becomes token positions.

Two rules hold everywhere. A text is tokenised whole, once, with the special tokens of the forward pass, and positions
are found by character offsets (never by counting the tokens of its pieces). And where a target is appended, ids are
appended: nothing is decoded and tokenised again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import frozen

from kedit_core.errors import InputError

# what SentencePiece and byte-level BPE write for a space
_SPACE_MARKS = "▁Ġ \u2420"


@frozen
class Encoded:
    """A text and its tokens.

    Attributes:
        text: the text that was tokenised.
        ids: its token ids, special tokens included.
        offsets: per token the characters ``[start, end)`` of ``text`` it stands for, ``(0, 0)`` for a token that stands
            for none; None when the tokenizer cannot tell (slow tokenizers).
        blank: per token whether it is nothing but a space mark.
    """

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...] | None
    blank: tuple[bool, ...] = ()

    def tokens_of(self, span: tuple[int, int]) -> range:
        """Indices of the tokens that stand for characters of ``span``, from the first to the last.

        The last one is the last token that overlaps the span's last character (a character may be several tokens, and
        a token several characters, also across the span's border). Where the tokenizer gives that character no token
        (white space it drops), the last token that overlaps the span at all.

        Raises:
            InputError: a span outside the text, one that no token stands for, or a tokenizer without offsets.
        """
        start, end = span
        if not 0 <= start < end <= len(self.text):
            raise InputError(f"span {start}:{end} does not lie within the {len(self.text)} characters of {self.text!r}")
        if self.offsets is None:
            raise InputError(
                "this tokenizer gives no character offsets, so the subject's tokens cannot be found; "
                "load the model's fast tokenizer (use_fast=True)"
            )
        touching = [i for i, (a, b) in enumerate(self.offsets) if a < b and a < end and b > start]
        if not touching:
            raise InputError(f"no token stands for {self.text[start:end]!r}, characters {start}:{end} of {self.text!r}")
        on_last = [i for i in touching if self.offsets[i][0] < end <= self.offsets[i][1]]
        last = on_last[-1] if on_last else touching[-1]
        first = touching[0]
        # a lone space piece in front of a word stands for the space, whatever offsets it claims
        while first < last and self.blank and self.blank[first] and not self.text[start].isspace():
            first += 1
        return range(first, last + 1)


@frozen
class Pair:
    """A prompt and a target as ids: the model reads ``prompt_ids`` and is asked for ``target_ids``.

    For a decoder-only model the row is their concatenation; for an encoder-decoder the encoder reads the prompt and the
    decoder is fed the target shifted right.
    """

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]


class TokenBoundary:
    """Text to ids and back for one tokenizer.

    Args:
        tokenizer: a transformers tokenizer; a fast one where subjects are to be found.
        encoder_decoder: the prompt goes to an encoder (and keeps its end-of-sequence token), the target to a decoder.
    """

    def __init__(self, tokenizer: Any, encoder_decoder: bool = False) -> None:
        self.tokenizer = tokenizer
        self.encoder_decoder = encoder_decoder

    @property
    def pad_id(self) -> int:
        """The id that rows are filled up with; it never tells padding from text, the mask does."""
        for candidate in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if candidate is not None:
                return int(candidate)
        return 0

    def prompt(self, text: str) -> Encoded:
        """Tokenise a prompt with the special tokens of the forward pass.

        A decoder-only model goes on writing after its prompt, so special tokens that a tokenizer adds at the end
        (end of sequence) are left off for it.

        Raises:
            InputError: the text is empty, or the tokenizer makes no token of it.
        """
        if not text:
            raise InputError("the prompt is empty; give at least one character")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the prompt {text[:60]!a} has half a character (a lone surrogate), which no UTF-8 text can hold; take "
                "it out"
            ) from error
        return self._encode(text)

    def pair(self, prompt: str, target: str) -> Pair:
        """Join a prompt and a target (specs: target ids are those of the joined text, minus the prompt's).

        The target is stripped, and joined with one space unless the prompt ends in white space already; so also a
        target that is punctuation or is written without spaces gets its space (give ``prompt`` and target so that this
        is right). Where the joined text's ids do not begin with the prompt's (a merge across the border), the target is
        encoded alone, without special tokens and without a leading lone space piece.

        For an encoder-decoder the target is encoded alone, without special tokens.

        Raises:
            InputError: prompt or target is empty, or has no tokens.
        """
        stripped = target.strip()
        if not stripped:
            raise InputError("the target is empty; give the text the model should answer")
        prompt_ids = self.prompt(prompt).ids
        if self.encoder_decoder:
            return Pair(prompt_ids, self._alone(stripped, drop_blank=False))
        space = "" if prompt[-1].isspace() else " "
        joined = self._encode(prompt + space + stripped).ids
        if len(joined) > len(prompt_ids) and joined[: len(prompt_ids)] == prompt_ids:
            return Pair(prompt_ids, joined[len(prompt_ids) :])
        return Pair(prompt_ids, self._alone(space + stripped, drop_blank=True))

    def subject_tokens(self, text: str, span: tuple[int, int]) -> range:
        """Token indices of ``prompt(text)`` that stand for the characters ``span``; see :meth:`Encoded.tokens_of`."""
        return self.prompt(text).tokens_of(span)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out and spaces as the model wrote them."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def continuation(self, prompt_ids: Sequence[int], new_ids: Sequence[int], before: str | None = None) -> str:
        """Text of ``new_ids`` as it follows ``prompt_ids``, its leading space kept.

        (A SentencePiece tokenizer drops the leading space of what it decodes, so the new ids alone are not enough.)
        ``before`` is ``decode(prompt_ids)`` where it is known already.
        """
        if self.encoder_decoder:
            return self.decode(new_ids)
        before = self.decode(prompt_ids) if before is None else before
        whole = self.decode([*prompt_ids, *new_ids])
        return whole[len(before) :] if whole.startswith(before) else self.decode(new_ids)

    def _encode(self, text: str) -> Encoded:
        fast = bool(getattr(self.tokenizer, "is_fast", False))
        out = self.tokenizer(
            text, add_special_tokens=True, padding=False, truncation=False, verbose=False,
            return_attention_mask=False, return_special_tokens_mask=True, return_offsets_mapping=fast,
        )  # fmt: skip
        ids = [int(i) for i in out["input_ids"]]
        special = [bool(flag) for flag in out["special_tokens_mask"]]
        if fast:
            spans = [(int(a), int(b)) for a, b in out["offset_mapping"]]
            # a special token the user wrote into the text stands for characters, one the tokenizer added does not
            special = [flag and a == b for flag, (a, b) in zip(special, spans, strict=True)]
        keep = len(ids)
        if not self.encoder_decoder:
            while keep and special[keep - 1] and not all(special[:keep]):
                keep -= 1
        if not keep or all(special[:keep]):
            raise InputError(f"the tokenizer makes no token of {text!r}")
        pieces = self.tokenizer.convert_ids_to_tokens(ids[:keep])
        blank = tuple(isinstance(piece, str) and not piece.strip(_SPACE_MARKS) for piece in pieces)
        return Encoded(text, tuple(ids[:keep]), tuple(spans[:keep]) if fast else None, blank)

    def _alone(self, text: str, drop_blank: bool) -> tuple[int, ...]:
        out = self.tokenizer(text, add_special_tokens=False, padding=False, truncation=False, verbose=False)
        ids = [int(i) for i in out["input_ids"]]
        if drop_blank and len(ids) > 1:
            piece = self.tokenizer.convert_ids_to_tokens(ids[0])
            if isinstance(piece, str) and not piece.strip(_SPACE_MARKS):
                ids = ids[1:]
        if not ids:
            raise InputError(f"the tokenizer makes no token of the target {text.strip()!r}")
        return tuple(ids)


def fill(template: str, text: str) -> str:
    """Put ``text`` into the one ``{}`` of a template; other braces, and any in ``text``, are plain characters.

    Raises:
        InputError: the template does not have exactly one ``{}``.
    """
    start = slot(template)
    return template[:start] + text + template[start + 2 :]


def slot(template: str) -> int:
    """Where the one ``{}`` of a template is, in characters: a span of the text moves by this much when filled in.

    Raises:
        InputError: the template does not have exactly one ``{}``.
    """
    count = template.count("{}")
    if count != 1:
        raise InputError(f"the template {template!r} has {count} slots; write exactly one {{}}")
    return template.index("{}")
