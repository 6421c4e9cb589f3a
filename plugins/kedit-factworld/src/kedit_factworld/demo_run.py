"""What the demo does, as a function from a case to a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import attrs
import torch
from attrs import frozen

from kedit_core import Editor, EditPatch, EditRequest
from kedit_core.evaluation import Evaluation
from kedit_core.patches.trust import ANYONE

METHOD = "rome"


@frozen(kw_only=True)
class Reading:
    """The model's own answers to one prompt; ``wanted`` is what it should say after the edit."""

    role: str
    prompt: str
    before: str
    after: str
    wanted: str


@frozen
class Claim:
    """Something the demo promises, and whether it was so."""

    text: str
    holds: bool


@frozen(kw_only=True)
class Elsewhere:
    """The same prompt on a freshly loaded model: as loaded, with the patch from the file, and without it again."""

    loaded: str
    patched: str
    removed: str


@frozen(kw_only=True)
class Digests:
    """SHA-256 over all weights: as loaded, edited, with the patch file on the other copy, and after removal on both."""

    start: str
    edited: str
    elsewhere_patched: str
    elsewhere_removed: str
    restored: str


@frozen(kw_only=True)
class DemoReport:
    """Everything the demo saw. ``seconds`` is the wall time of all of it; sizes are bytes."""

    model: str
    parameters: int
    dtype: str
    case: EditRequest
    readings: tuple[Reading, ...]
    evaluation: Evaluation
    warnings: tuple[str, ...]
    patch: Path
    patch_id: str
    patch_bytes: int
    elsewhere: Elsewhere
    digests: Digests
    claims: tuple[Claim, ...]
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether every claim is true."""
        return all(claim.holds for claim in self.claims)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        parts = {name: attrs.asdict(getattr(self, name)) for name in ("elsewhere", "digests")}
        return {
            "model": self.model,
            "parameters": self.parameters,
            "dtype": self.dtype,
            "method": METHOD,
            "request": self.case.fact,
            "readings": [attrs.asdict(reading) for reading in self.readings],
            "evaluation": self.evaluation.to_dict(),
            "warnings": list(self.warnings),
            "patch": {"path": str(self.patch), "id": self.patch_id, "bytes": self.patch_bytes},
            **parts,
            "claims": [attrs.asdict(claim) for claim in self.claims],
            "holds": self.holds,
            "seconds": self.seconds,
        }


def prompts_of(case: EditRequest) -> list[tuple[str, str, str]]:
    """(role, prompt, answer wanted after the edit): the fact, a rephrase, and neighbours that must stay as they are."""
    rows = [("the fact", case.prompt, case.target_new)]
    rows += [("rephrased", prompt, case.target_new) for prompt in case.rephrase_prompts[:1]]
    for role, kind in (
        ("same answer", "neighborhood"),
        ("same relation", "same_relation"),
        ("same subject", "relation_specificity"),
    ):
        rows += [(role, probe.prompt, probe.answers[0]) for probe in case.locality.get(kind, ())[:1] if probe.answers]
    return rows


def same_answer(said: str, wanted: str) -> bool:
    """Whether an answer is the object, whatever its case and the full stop after it."""
    return said.strip().rstrip(".").strip().casefold() == wanted.casefold()


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread inside: matrices this small gain nothing from more, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_demo(model: str, case: EditRequest, output: Path, tell: Callable[[str], None]) -> DemoReport:
    """Edit ``case`` into ``model``, write the patch to ``output``, and try it on a second copy of the model.

    ``tell`` is told what is being done. Raises any KeditError on the way.
    """
    started = time.perf_counter()
    tell("loading the model")
    editor = Editor.from_pretrained(model, METHOD)
    start = editor.stack.weights_digest()
    rows = prompts_of(case)
    before = editor.answer([prompt for _, prompt, _ in rows])

    tell("editing and measuring")
    result = editor.edit(case)
    after = editor.answer([prompt for _, prompt, _ in rows])
    edited = editor.stack.weights_digest()
    result.patch.save(output)

    tell("trying the patch on a freshly loaded model")
    elsewhere, patched, removed = _elsewhere(model, output, case.prompt)
    editor.restore()
    digests = Digests(
        start=start,
        edited=edited,
        elsewhere_patched=patched,
        elsewhere_removed=removed,
        restored=editor.stack.weights_digest(),
    )
    readings = tuple(
        Reading(role=role, prompt=prompt, before=old, after=new, wanted=wanted)
        for (role, prompt, wanted), old, new in zip(rows, before, after, strict=True)
    )
    return DemoReport(
        model=model,
        parameters=sum(parameter.numel() for parameter in editor.model.parameters()),
        dtype=str(next(editor.model.parameters()).dtype).removeprefix("torch."),
        case=case,
        readings=readings,
        evaluation=cast(Evaluation, result.evaluation),
        warnings=tuple(warning.message for warning in result.warnings),
        patch=output,
        patch_id=result.patch.id,
        patch_bytes=output.stat().st_size,
        elsewhere=elsewhere,
        digests=digests,
        claims=claims_of(case, readings[0], elsewhere, digests),
        seconds=time.perf_counter() - started,
    )


def _elsewhere(model: str, patch_file: Path, prompt: str) -> tuple[Elsewhere, str, str]:
    """The patch from its file on a second copy of the model: answers, and the digests with it and after removal."""
    fresh = Editor.from_pretrained(model)
    patch = EditPatch.load(patch_file, trust=ANYONE)  # made a moment ago, and signed by nobody
    loaded = fresh.answer(prompt)
    with fresh.applied(patch):
        patched, with_patch = fresh.answer(prompt), fresh.stack.weights_digest()
    answers = Elsewhere(loaded=loaded, patched=patched, removed=fresh.answer(prompt))
    return answers, with_patch, fresh.stack.weights_digest()


def claims_of(case: EditRequest, fact: Reading, elsewhere: Elsewhere, digests: Digests) -> tuple[Claim, ...]:
    """What the demo promises of any case: rephrases and neighbours are shown and measured, not promised."""
    old, new = case.ground_truth or "", case.target_new
    return (
        Claim(f"the model said {old!r} before the edit", same_answer(fact.before, old)),
        Claim(f"it says {new!r} after it", same_answer(fact.after, new) and digests.edited != digests.start),
        Claim("a freshly loaded model says the same with the patch from the file", elsewhere.patched == fact.after),
        Claim("its weights are then those of the edited model", digests.elsewhere_patched == digests.edited),
        Claim("it says the old answer again once the patch is off", elsewhere.removed == elsewhere.loaded),
        Claim(
            "after removal the weights of both are byte-identical to the start",
            digests.start == digests.elsewhere_removed == digests.restored,
        ),
    )
