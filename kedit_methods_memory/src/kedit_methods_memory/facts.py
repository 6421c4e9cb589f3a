"""Requests as token ids, and which of them have the same answer."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from kedit_core.editing import EditContext
from kedit_core.editing.checks import refuse_long, row_length
from kedit_core.forward import TokenBoundary
from kedit_core.requests import EditRequest


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


def fitting(context: EditContext, requests: Sequence[EditRequest]) -> list[Fact]:
    """:func:`facts_of`, refused where the model has too few positions for one (also by rotary models).

    Raises RequestError naming each such request with its length.
    """
    facts, view = facts_of(context.tokens, requests), context.adapter
    refuse_long(context, requests, [row_length(view, fact.prompt, fact.target) for fact in facts])
    return facts
