"""The course of a tuning: one edit to know the time, the rounds, and the check at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import frozen

from kedit_core.editing.progress import Progress, Step
from kedit_methods_locate.tuning.budget import Budget
from kedit_methods_locate.tuning.candidates import Candidate, Candidates
from kedit_methods_locate.tuning.halving import Halved, Ledger, Measure, Stop, halve
from kedit_methods_locate.tuning.record import Check
from kedit_methods_locate.tuning.schedule import Group, Material, Schedule, schedule
from kedit_methods_locate.tuning.scoring import Outcome


@frozen(kw_only=True)
class Ended:
    """The rounds, and the check; ``stopped`` is what cut it short."""

    halved: Halved
    check: Check | None
    stopped: Stop | None


def run(
    measure: Measure,
    given: Material,
    found: Candidates,
    planned: Schedule,
    budget: Budget,
    progress: Progress,
    say: Callable[[str], None],
) -> Ended:
    """Try the candidates by the schedule, or by a smaller one when the first edit tells that the time is short.

    Raises MethodError when every candidate failed; KeyboardInterrupt before anything was measured.
    """
    with progress(f"trying {planned.candidates[0]} settings", total=float(planned.edits)) as step:
        ledger = Ledger(_advancing(measure, step), budget)
        by_units: dict[int, tuple[Group, ...]] = {}

        def groups(units: int) -> tuple[Group, ...]:
            return by_units.setdefault(units, given.groups(given.choosing[:units]))

        ledger.fill(found.tried[:1], groups(planned.units[0])[:1])
        planned = _in_time(given, planned, budget, say)
        tried = found.tried[: planned.candidates[0]]

        def describe(number: int, count: int) -> None:
            step.describe(f"round {number + 1} of {len(planned.units)}: {count} settings")

        halved = halve(tried, [groups(units) for units in planned.units], ledger, planned.kept, describe)
        step.describe("checking the winner")
        held = given.groups(given.held_out[: planned.held_out])
        if ledger.stopped == "budget":
            ledger.stopped = None  # what was kept for the check is still there
        check = _check(ledger, halved.winner, tried[0], held or halved.groups, held_out=bool(held))
        if held and check is None:
            reason = ledger.failures.get(halved.winner.number, "the budget was spent, or the run was stopped")
            say(f"the winner was not checked on other cases: {reason}")
    return Ended(halved=halved, check=check, stopped=ledger.stopped)


def _in_time(given: Material, planned: Schedule, budget: Budget, say: Callable[[str], None]) -> Schedule:
    """Say how long it will take; the schedule, or a smaller one that fits."""
    pace = budget.pace or 0.0
    say(f"the first edits took {pace:.2g} s each with their evaluation: about {_time(pace * planned.edits)} in all")
    possible = budget.affordable()
    if possible is None or possible >= planned.edits:
        return planned
    smaller = schedule(given, planned.candidates[0], possible)
    say(
        f"there is time for about {possible} edits, so {smaller.candidates[0]} settings are tried on "
        f"{given.width * smaller.units[-1]} cases at most"
    )
    return smaller


def _check(
    ledger: Ledger, winner: Candidate, untuned: Candidate, groups: Sequence[Group], *, held_out: bool
) -> Check | None:
    """Both on the same groups, those that they could be measured on; None when the winner was on none."""
    if winner is untuned and not held_out:
        return None
    both = [winner] if winner is untuned else [winner, untuned]
    ledger.fill(both, groups)
    able = [each for each in both if each.number not in ledger.failures]
    shared = [group for group in groups if all(ledger.has(each, group) for each in able)]
    score = ledger.score(winner, shared)
    if score is None or winner not in able:
        return None
    return Check(held_out=held_out, winner=score, untuned=ledger.score(untuned, shared) if untuned in able else None)


def _advancing(measure: Measure, step: Step) -> Measure:
    def advanced(candidate: Candidate, group: Group) -> Outcome:
        try:
            return measure(candidate, group)
        finally:
            step.advance(len(group))

    return advanced


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
