"""Cases edited alone: each computed on the model as it was found, and measured with nothing else on it.

Where a case's patch can act on some rows of a batch only, its questions wait for those of the next cases and are read
together with them; the patch is put on for its measurement all the same. Other cases are measured at once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from attrs import define, field, frozen

from kedit_core.editing.context import EditContext
from kedit_core.editing.progress import Step
from kedit_core.editing.rounds import OnPatch, run_rounds, settle, take_off
from kedit_core.editing.scenarios import Round
from kedit_core.evaluation import Answers, Evaluation, Questions, read_together
from kedit_core.patches import EditPatch
from kedit_core.patches.row_branches import RowBranches, row_fault

Known: TypeAlias = Mapping[tuple[Hashable, Hashable], Any]
Measure: TypeAlias = Callable[[Round, Known | None], Evaluation]

_TOGETHER = 128  # cases whose questions are read together, at most
_SHARE = 4  # of the memory budget, the part that their patches' factors may take
_EXACT = frozenset({torch.float32, torch.float64})


@frozen(eq=False)
class _Waiting:
    number: int
    case: Round
    patch: EditPatch
    records: Mapping[str, list[float]]


def run_cases(
    context: EditContext,
    plan: Sequence[tuple[Round, Sequence[Round]]],
    measure: Measure | None,
    on_patch: OnPatch | None,
    answers: Answers,
) -> tuple[tuple[EditPatch, ...], list[Evaluation]]:
    """Each case's patch, and its evaluation when there is something to measure with.

    Args:
        measure: given a case whose patch is on the model, and what was read ahead of its answers.
        answers: of the model as it is now.
    """
    run = _Run(context, measure, answers)
    patches: list[EditPatch] = []
    before, found = context.previous, context.stack.patches
    with context.progress("editing, one case at a time", total=len(plan)) as step:
        for number, (case, calls) in enumerate(plan):
            context.previous = before
            patch = settle(context, run_rounds(context, calls))
            patches.append(patch)
            if on_patch is not None:
                on_patch(patch, case)
            waiting = _Waiting(number, case, patch, {name: list(each) for name, each in context.records.items()})
            # a patch that took the place of one before cannot be read beside that one
            later = run.can_wait(patch) and context.stack.patches[:-1] == found
            if measure is not None and not later:
                run.evaluate(waiting, None)
            context.records.clear()
            take_off(context, patch)
            if context.stack.patches != found:
                # an extending method's patch had taken the place of the one before
                context.stack.reset_to(found)
            if later:
                run.wait(waiting, step)
            else:
                step.advance()
        run.flush(step)
    return tuple(patches), [run.evaluations[number] for number in sorted(run.evaluations)]


def evaluate_cases(
    context: EditContext, made: Sequence[tuple[EditPatch, Round]], measure: Measure, answers: Answers
) -> list[Evaluation]:
    """The evaluation of each patch alone, for cases edited before; arguments are those of :func:`run_cases`."""
    run = _Run(context, measure, answers)
    with context.progress("evaluating, one case at a time", total=len(made)) as step:
        for number, (patch, case) in enumerate(made):
            waiting = _Waiting(number, case, patch, {})
            if run.can_wait(patch):
                run.wait(waiting, step)
                continue
            context.host.apply_to_model(context, patch, context.way)
            run.evaluate(waiting, None)
            take_off(context, patch)
            step.advance()
        run.flush(step)
    return [run.evaluations[number] for number in range(len(made))]


@define(eq=False)
class _Run:
    context: EditContext
    measure: Measure | None
    answers: Answers
    evaluations: dict[int, Evaluation] = field(factory=dict)
    waiting: list[_Waiting] = field(factory=list)
    size: int = 0

    def can_wait(self, patch: EditPatch) -> bool:
        """Whether a patch that is on the model can be read as rows of a batch, to the same answers."""
        context = self.context
        if self.measure is None or context.stack.routed:
            return False
        if row_fault(context.model, patch) is not None:
            return False
        # merged into narrow weights a delta is rounded, which a branch is not
        dtypes = {context.model.get_parameter(place).dtype for place in patch.places}
        return context.way == "attached" or dtypes <= _EXACT

    def wait(self, waiting: _Waiting, step: Step) -> None:
        """Put a case among those that are read together, and read them when there are enough."""
        self.waiting.append(waiting)
        self.size += waiting.patch.size
        if len(self.waiting) >= _TOGETHER or self.size > self.context.memory_budget // _SHARE:
            self.flush(step)

    def flush(self, step: Step) -> None:
        """Read all cases that wait, and measure each."""
        waiting, self.waiting, self.size = self.waiting, [], 0
        if not waiting:
            return
        asked: list[Questions] = []
        for one in waiting:
            with self.answers.noting() as questions:
                self.context.host.read_ahead(self.context, one.case, self.answers)
            asked.append(questions)
        branches = RowBranches(self.context.model, self.context.stack.scope, [one.patch for one in waiting])
        for one, known in zip(waiting, read_together(branches, asked), strict=True):
            self.context.host.apply_to_model(self.context, one.patch, self.context.way)
            self.evaluate(one, known)
            take_off(self.context, one.patch)
            step.advance()

    def evaluate(self, one: _Waiting, known: Known | None) -> None:
        """Measure a case whose patch is on the model, with the records of its own edit."""
        if self.measure is not None:
            self.context.records.clear()
            self.context.records.update({name: list(each) for name, each in one.records.items()})
            self.evaluations[one.number] = self.measure(one.case, known)
            self.context.records.clear()
