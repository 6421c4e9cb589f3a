"""Edit requests and their probes.

The native shape is that of one line of a cases file (see docs/requests.md): every field below under its own name,
``Probe.answers`` as ``ground_truth`` (a string or a list), anything else under ``meta``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from kedit_core.requests._subjects import subject_span

KINDS = ("modify", "insert", "erase")
"""What an edit does: another answer, a new fact, or a fact that is to be refused from now on."""

_SHOWN = 60  # characters of a prompt in a message


@frozen(kw_only=True)
class Probe:
    """A prompt with its accepted answers; an empty tuple means that only agreement with the base can be judged."""

    prompt: str
    answers: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(factory=dict)


@frozen(kw_only=True)
class EditRequest:
    """One fact to change, and the probes that judge the change.

    Attributes:
        prompt: text that the model should complete with ``target_new``.
        target_new: the new answer, without the leading space.
        subject: what the fact is about; must occur in the prompt for methods that need one.
        subject_span: ``(start, end)`` characters of the subject in the prompt; found by ``prepare_requests``
            (last whole-word occurrence) when not given.
        ground_truth: the answer before the edit, if known.
        aliases: further accepted spellings of ``target_new``.
        case_id: groups requests of one case.
        kind: ``modify`` an answer, ``insert`` a new fact, or ``erase`` one (the target is then a refusal).
        rephrase_prompts: other wordings of the same fact (generalization).
        locality, portability: name of a sub-key -> probes.
        generation_prompts: openings about the subject, for fluency.
        meta: what is not ours.
    """

    prompt: str
    target_new: str
    subject: str | None = None
    subject_span: tuple[int, int] | None = None
    ground_truth: str | None = None
    aliases: tuple[str, ...] = ()
    case_id: str | None = None
    rephrase_prompts: tuple[str, ...] = ()
    locality: Mapping[str, tuple[Probe, ...]] = field(factory=dict)
    portability: Mapping[str, tuple[Probe, ...]] = field(factory=dict)
    generation_prompts: tuple[str, ...] = ()
    kind: str = "modify"
    meta: Mapping[str, Any] = field(factory=dict)

    @property
    def fact(self) -> dict[str, Any]:
        """What is edited, without the probes: JSON-able, what a patch's manifest keeps."""
        return {
            "prompt": self.prompt,
            "subject": self.subject,
            "subject_span": list(self.subject_span) if self.subject_span else None,
            "target_new": self.target_new,
            "ground_truth": self.ground_truth,
            "case_id": self.case_id,
        }

    @property
    def id(self) -> str:
        """Stable short id of the fact: the first 16 hex digits of the SHA-256 of its canonical JSON.

        Where the subject stands counts as it will be found, so that a request has one id, prepared or not.
        """
        known = isinstance(self.prompt, str) and isinstance(self.subject, str | None)
        span = subject_span(self) if known else self.subject_span
        fact = {**self.fact, "subject_span": list(span) if span else None}
        text = json.dumps(fact, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def shortened(prompt: str) -> str:
    """A prompt as messages name it: in quotes, its first 60 characters only."""
    return repr(prompt if len(prompt) <= _SHOWN else f"{prompt[:_SHOWN]}...")
