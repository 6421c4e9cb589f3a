"""The facts of two patches held against one another.

Compared are prompts, targets and subjects as text: Unicode-normalised (NFC), without regard to case and to runs of
white space. The same fact in other words is not seen; only that two prompts are about one subject is.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from attrs import frozen

from kedit_core.patches.format import EditPatch
from kedit_core.patches.manifest import PrivateRequests

Fact: TypeAlias = Mapping[str, Any]
Known: TypeAlias = Literal["compared", "equal hashes", "private"]


@frozen(kw_only=True)
class SharedPrompt:
    """A prompt that two patches edit.

    Attributes:
        prompt: as the first patch has it.
        first, second: the targets of the two, each once.
    """

    prompt: str
    first: tuple[str, ...]
    second: tuple[str, ...]


@frozen(kw_only=True)
class FactConflicts:
    """What two patches say of the same things.

    Attributes:
        known: ``compared``; or, of patches with private facts, ``equal hashes`` (the very same facts) or ``private``
            (nothing can be said).
        contradictions: prompts with other targets: the model gives one answer.
        duplicates: prompts with the same targets.
        subjects: subjects that both edit with different prompts; whether these are the same fact cannot be known.
    """

    known: Known = "compared"
    contradictions: tuple[SharedPrompt, ...] = ()
    duplicates: tuple[SharedPrompt, ...] = ()
    subjects: tuple[str, ...] = ()


def normalised(text: str) -> str:
    """Text as it is compared."""
    return " ".join(unicodedata.normalize("NFC", text).split()).casefold()


def compare_facts(first: EditPatch, second: EditPatch) -> FactConflicts:
    """What the requests of two patches have in common; hashes, where the author of one kept its facts private."""
    one, other = first.requests, second.requests
    if isinstance(one, PrivateRequests) or isinstance(other, PrivateRequests):
        return FactConflicts(known="equal hashes" if _private(one) == _private(other) else "private")
    prompts, others = _by(one, "prompt"), _by(other, "prompt")
    contradictions: list[SharedPrompt] = []
    duplicates: list[SharedPrompt] = []
    for prompt in prompts.keys() & others.keys():
        shared = SharedPrompt(
            prompt=prompts[prompt][0]["prompt"], first=_targets(prompts[prompt]), second=_targets(others[prompt])
        )
        equal = set(map(normalised, shared.first)) == set(map(normalised, shared.second))
        (duplicates if equal else contradictions).append(shared)
    return FactConflicts(
        contradictions=tuple(sorted(contradictions, key=lambda each: each.prompt)),
        duplicates=tuple(sorted(duplicates, key=lambda each: each.prompt)),
        subjects=_subjects(one, other),
    )


def _private(requests: Sequence[Fact] | PrivateRequests) -> PrivateRequests:
    return requests if isinstance(requests, PrivateRequests) else PrivateRequests.of(requests)


def _by(facts: Sequence[Fact], field: str) -> dict[str, list[Fact]]:
    found: dict[str, list[Fact]] = {}
    for fact in facts:
        if fact.get(field):
            found.setdefault(normalised(fact[field]), []).append(fact)
    return found


def _targets(facts: Sequence[Fact]) -> tuple[str, ...]:
    """Targets as written, the first of those that are the same as text."""
    found: dict[str, str] = {}
    for fact in facts:
        found.setdefault(normalised(fact["target_new"]), fact["target_new"].strip())
    return tuple(found.values())


def _subjects(one: Sequence[Fact], other: Sequence[Fact]) -> tuple[str, ...]:
    """Subjects of both for which one patch has a prompt that the other has not."""
    mine, theirs = _by(one, "subject"), _by(other, "subject")
    return tuple(
        sorted(
            mine[subject][0]["subject"]
            for subject in mine.keys() & theirs.keys()
            if _by(mine[subject], "prompt").keys() != _by(theirs[subject], "prompt").keys()
        )
    )
