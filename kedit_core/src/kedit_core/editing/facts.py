"""The facts in a patch, and which of them a user means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from kedit_core.errors import InputError
from kedit_core.patches import EditPatch, PrivateRequests
from kedit_core.requests import EditRequest, shortened

if TYPE_CHECKING:
    from kedit_core.editing.context import EditContext

Fact: TypeAlias = Mapping[str, Any]

_LISTED = 8
_TARGETS = 3  # of one prompt in a message


def request_of(fact: Fact) -> EditRequest:
    """The request that a patch records as ``fact``, without its probes."""
    span = fact.get("subject_span")
    return EditRequest(**{**fact, "subject_span": None if span is None else tuple(span)})


def facts_of(patch: EditPatch) -> tuple[Fact, ...]:
    """What a patch edits; InputError when its author kept that private."""
    if isinstance(patch.requests, PrivateRequests):
        raise InputError(
            f"the facts of patch {patch.id[:12]} are private, so nobody can tell one from the other; drop it from the "
            "patch that its author has kept"
        )
    return patch.requests


def requests_named(patch: EditPatch, wanted: str) -> list[str]:
    """Ids of the requests that ``wanted`` means, each once.

    It is a ``case_id`` (of all requests of that case), or ``#3`` for the third request (just ``3`` when no request has
    a case id), or the id of a request.

    Requests that are equal have one id and go together, whichever of them is named.

    Raises InputError when the facts are private, when there is no such request, or when none would be left.
    """
    facts = facts_of(patch)
    found = _matching(facts, wanted)
    if not found:
        raise InputError(f"patch {patch.id[:12]} has no case {wanted!r}; it has {_listing(facts)}")
    ids = list(dict.fromkeys(request_of(fact).id for fact in found))
    if all(request_of(fact).id in ids for fact in facts):
        equal = " (requests that are equal go together)" if len(facts) > len(found) else ""
        raise InputError(
            f"nothing would be left of patch {patch.id[:12]} without {wanted!r}{equal}; remove the whole patch instead"
        )
    return ids


def contradictions(requests: Sequence[EditRequest]) -> dict[str, tuple[str, ...]]:
    """Prompts that are to be completed with different targets, with these targets in order.

    One model gives one answer to a prompt, so at most one of the targets can come true.
    """
    targets: dict[str, dict[str, None]] = {}
    for request in requests:
        targets.setdefault(request.prompt.strip(), {})[request.target_new.strip()] = None
    return {prompt: tuple(found) for prompt, found in targets.items() if len(found) > 1}


def warn_of_contradictions(context: EditContext, requests: Sequence[EditRequest]) -> None:
    """Warn ``contradicting_requests`` with the number of prompts whose requests contradict each other."""
    found = contradictions(requests)
    if not found:
        return
    prompt, targets = next(iter(found.items()))
    more = f", and {len(found) - 1} more prompts contradict themselves" if len(found) > 1 else ""
    context.warn(
        "contradicting_requests",
        float(len(found)),
        "keep one target for each prompt, or edit each case alone (scenario single)",
        f"{shortened(prompt)} is to be completed with {' and with '.join(map(repr, targets[:_TARGETS]))}"
        f"{f' and {len(targets) - _TARGETS} more' if len(targets) > _TARGETS else ''}{more}",
    )


def _matching(facts: Sequence[Fact], wanted: str) -> list[Fact]:
    if of_case := [fact for fact in facts if fact.get("case_id") == wanted]:
        return of_case
    unnamed = all(fact.get("case_id") is None for fact in facts)
    number = wanted.removeprefix("#")
    if (wanted.startswith("#") or unnamed) and number in map(str, range(1, len(facts) + 1)):
        return [facts[int(number) - 1]]
    return [fact for fact in facts if request_of(fact).id == wanted]


def _listing(facts: Sequence[Fact]) -> str:
    """Some names that would have been understood."""
    names = list(dict.fromkeys(fact.get("case_id") or f"#{number}" for number, fact in enumerate(facts, 1)))
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED])}{more}"
