"""The facts in a patch, and which of them a user means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from kedit_core.errors import InputError
from kedit_core.patches import EditPatch, PrivateRequests
from kedit_core.requests import EditRequest

Fact: TypeAlias = Mapping[str, Any]

_LISTED = 8


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

    Raises InputError when the facts are private, when there is no such request, or when none would be left.
    """
    facts = facts_of(patch)
    found = _matching(facts, wanted)
    if not found:
        raise InputError(f"patch {patch.id[:12]} has no case {wanted!r}; it has {_listing(facts)}")
    ids = list(dict.fromkeys(request_of(fact).id for fact in found))
    if all(request_of(fact).id in ids for fact in facts):
        raise InputError(
            f"nothing would be left of patch {patch.id[:12]} without {wanted!r}; remove the whole patch instead"
        )
    return ids


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
