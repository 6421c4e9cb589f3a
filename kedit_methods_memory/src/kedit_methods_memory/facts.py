"""Requests as token ids, and which of them have the same answer."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from kedit_core.editing import EditContext
from kedit_core.errors import RequestError
from kedit_core.forward import TokenBoundary
from kedit_core.models import ModelView
from kedit_core.requests import EditRequest, shortened


@frozen
class Fact:
    """A prompt and what should follow it, as ids.

    Attributes:
        id: the request's.
        label: the answer's ids in canonical form: equal answers have equal labels, whatever the prompt ends with.
    """

    id: str
    prompt: tuple[int, ...]
    target: tuple[int, ...]
    label: tuple[int, ...]


def facts_of(tokens: TokenBoundary, requests: Sequence[EditRequest]) -> list[Fact]:
    """Requests as ids. Raises InputError for a prompt or target without tokens."""
    found = []
    for request in requests:
        pair = tokens.pair(request.prompt, request.target_new)
        # white space at the prompt's end changes the first id of what follows
        bare = request.prompt.rstrip()
        label = tokens.pair(bare, request.target_new).target_ids if bare else pair.target_ids
        found.append(Fact(request.id, pair.prompt_ids, pair.target_ids, label))
    return found


def row_length(view: ModelView, fact: Fact) -> int:
    """Tokens that the edited stack reads: an encoder the prompt, a decoder all but the last target token too."""
    return len(fact.prompt) + (0 if view.is_encoder_decoder else len(fact.target) - 1)


def fitting(context: EditContext, requests: Sequence[EditRequest]) -> list[Fact]:
    """:func:`facts_of`, refused where the model has too few positions for one (also by rotary models).

    Raises RequestError naming each such request with its length.
    """
    view, facts = context.adapter, facts_of(context.tokens, requests)
    limit = view.row_limit
    faults = [
        f"{shortened(request.prompt)}: the prompt with its target is {row_length(view, fact)} tokens long, and the "
        f"model has {limit} positions; shorten it"
        for request, fact in zip(requests, facts, strict=True)
        if limit is not None and row_length(view, fact) > limit
    ]
    if faults:
        name = context.method.name if context.method else "unknown"
        raise RequestError(f"the requests for method {name!r}", faults)
    return facts
