"""Requests as rows of token ids: where a fact is read, what is asked for, and the essence row that must not change.

Specification: ROME, section 2 (which token) and 4.3 (which rows).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from attrs import evolve, frozen

from kedit_core.errors import MethodError
from kedit_core.forward import TokenBoundary, fill, slot
from kedit_core.requests import EditRequest
from kedit_methods_locate.hparams import FactToken

logger = logging.getLogger(__name__)


@frozen
class Row:
    """One prompt as tokens.

    Attributes:
        ids: the prompt's ids, special tokens of the forward pass included, no target.
        index: which of them is read and written.
        last: the last token that stands for text (an encoder's prompt has an end-of-sequence token after it).
    """

    ids: tuple[int, ...]
    index: int
    last: int

    def cut(self) -> Row:
        """The same row without what follows the token that is read."""
        return evolve(self, ids=self.ids[: self.index + 1], last=min(self.last, self.index))


@frozen
class Rewrite:
    """One request, ready for the value search.

    Attributes:
        rows: the prompt in each of the J contexts, bare first.
        target: ids that each row should continue with.
        essence: "{subject} is a", whose prediction should stay.
    """

    rows: tuple[Row, ...]
    target: tuple[int, ...]
    essence: Row


def in_context(template: str, prompt: str, span: tuple[int, int]) -> tuple[str, tuple[int, int]]:
    """The prompt in its context, and where a span of its characters has gone.

    Raises InputError when the template does not have exactly one slot.
    """
    shift = slot(template)
    return fill(template, prompt), (span[0] + shift, span[1] + shift)


def text_row(tokens: TokenBoundary, text: str, span: tuple[int, int], fact_token: FactToken = "subject_last") -> Row:
    """A text as a row, with the token that ``fact_token`` names (the subject being the characters ``span``).

    ``subject_first_after_last`` is the token after the subject, or the subject's last when nothing follows. A text is
    tokenised whole, so the index is right wherever the subject stands and whatever special tokens are added.
    """
    encoded = tokens.prompt(text)
    subject = encoded.tokens_of(span)
    end = len(text.rstrip())
    last = encoded.tokens_of((end - 1, end))[-1]
    index = {
        "subject_last": subject[-1],
        "subject_first": subject[0],
        "subject_first_after_last": subject[-1] + 1 if subject[-1] < last else subject[-1],
        "last": last,
    }[fact_token]
    return Row(ids=encoded.ids, index=index, last=last)


def subject_of(request: EditRequest) -> tuple[str, tuple[int, int]]:
    """The subject's text and its span in the prompt, as ``prepare_requests`` found it.

    Raises MethodError when the request has none.
    """
    if request.subject_span is None:
        raise MethodError(f"the request {request.prompt!r} has no subject; give a whole word of it, or subject_span")
    start, end = request.subject_span
    return request.prompt[start:end], (start, end)


def _note_parity(tokens: TokenBoundary, prompt: str, span: tuple[int, int]) -> None:
    """Log where the papers' code would have written elsewhere: a merge across the subject's end (``Paris's``).

    Its rule, the last token of the text cut after the subject, does not know the end-of-sequence token of an encoder.
    """
    if tokens.encoder_decoder:
        return
    ours, theirs = tokens.subject_tokens(prompt, span)[-1], len(tokens.prompt(prompt[: span[1]]).ids) - 1
    if ours != theirs:
        logger.warning(
            "the subject's last token in %r is %d by its characters, and %d by the rule of the papers' code; the "
            "former is used",
            prompt,
            ours,
            theirs,
        )


def rewrite(
    tokens: TokenBoundary,
    request: EditRequest,
    templates: Sequence[str],
    fact_token: FactToken = "subject_last",
) -> Rewrite:
    """The rows of one request: J contexts and the essence.

    The target's ids are those that follow the bare prompt, and are appended as ids in every context.
    """
    subject, span = subject_of(request)
    _note_parity(tokens, request.prompt, span)
    filled = [in_context(template, request.prompt, span) for template in templates]
    return Rewrite(
        rows=tuple(text_row(tokens, text, moved, fact_token) for text, moved in filled),
        target=tokens.pair(request.prompt, request.target_new).target_ids,
        essence=text_row(tokens, f"{subject} is a", (0, len(subject)), fact_token),
    )
