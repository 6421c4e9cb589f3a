"""How many candidates are tried on how many cases, round after round. Imports no torch."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from attrs import evolve, frozen

from kedit_core.contract import Scenario
from kedit_core.requests import EditRequest

ETA = 2  # the best half goes on
FIRST = 4  # cases of the first round
_ENOUGH = 8  # cases, before some are held out
_HELD = 4  # one of so many units is held out, and more when there are more than are needed
_BATCH = 8


@frozen(eq=False)
class Group:
    """Requests that are edited in one go and measured after it; compared by identity."""

    requests: tuple[EditRequest, ...]

    def __len__(self) -> int:
        return len(self.requests)


@frozen(kw_only=True)
class Material:
    """The cases, shuffled, in the units that are never split: a case (single, sequential) or a batch of cases.

    Attributes:
        choosing: what candidates are tried on, in this order.
        held_out: what the winner is checked on.
        scenario, batch_size: how a group is edited.
    """

    choosing: tuple[Group, ...]
    held_out: tuple[Group, ...]
    scenario: Scenario
    batch_size: int

    @property
    def width(self) -> int:
        """Cases in a unit."""
        return self.batch_size if self.scenario == "batch" else 1

    def groups(self, units: Sequence[Group]) -> tuple[Group, ...]:
        """What is edited in one go: each unit, or all of them one after another (sequential)."""
        if self.scenario != "sequential" or not units:
            return tuple(units)
        return (Group(tuple(request for unit in units for request in unit.requests)),)


def material(
    cases: Sequence[tuple[EditRequest, ...]], scenario: Scenario, batch_size: int | None, most: int, seed: int
) -> Material:
    """Shuffle the cases, put them in units and hold some out.

    Args:
        cases: requests by case.
        batch_size: cases in a batch (``batch``), or requests in a round (``sequential``); for None 8, or fewer so that
            half of the cases can be held out, and one at a time in a sequence.
        most: cases that candidates are tried on at most.
    """
    shuffled = list(cases)
    random.Random(seed).shuffle(shuffled)
    size = batch_size or (_usual_batch(len(cases)) if scenario == "batch" else 1)
    if scenario == "batch":
        size = min(size, len(cases))
    width = size if scenario == "batch" else 1
    whole = [shuffled[i : i + width] for i in range(0, len(shuffled) - width + 1, width)] or [shuffled]
    units = [Group(tuple(request for case in unit for request in case)) for unit in whole]
    held = max(len(units) // _HELD, 1) if len(units) > 1 and len(shuffled) >= _ENOUGH else 0
    choosing = min(max(most // width, 1), len(units) - held)
    spare = units[choosing : choosing + max(most // width, 1)] if held else []
    return Material(choosing=tuple(units[:choosing]), held_out=tuple(spare), scenario=scenario, batch_size=size)


def _usual_batch(count: int) -> int:
    """Of a batch of 8 another one is held out, where there are cases enough for that."""
    return min(_BATCH, count if count < _ENOUGH else count // 2)


@frozen(kw_only=True)
class Schedule:
    """The rounds: how many candidates are in each and how many units they are tried on.

    Attributes:
        candidates: in each round, falling to 1 after the last.
        units: in each round, never falling.
        held_out: units that the winner and the untuned settings are measured on at the end.
        edits: in all, when nothing fails.
        kept: of these, for the check at the end.
    """

    candidates: tuple[int, ...]
    units: tuple[int, ...]
    held_out: int
    edits: int
    kept: int


def schedule(given: Material, candidates: int, edits: int | None = None) -> Schedule:
    """A schedule of at most ``edits`` edits: on fewer cases where it must be, and of fewer candidates where that is
    not enough.

    Where even two candidates on one unit are too many, the smallest schedule is given.
    """
    last, held = len(given.choosing), len(given.held_out)
    first = max(min(FIRST // given.width, last), 1)
    if edits is None:
        return _schedule(given, candidates, first, last, held)
    for count in range(candidates, 1, -1):
        possible = [
            _schedule(given, count, one, end, min(held, end))
            for one in range(1, first + 1)
            for end in range(one, last + 1)
        ]
        fitting = [each for each in possible if each.edits <= edits]
        if fitting:
            return max(fitting, key=lambda each: (each.edits, each.units))
    return _schedule(given, 2, 1, 1, min(held, 1))


def _schedule(given: Material, candidates: int, first: int, last: int, held: int) -> Schedule:
    counts = [candidates]
    while counts[-1] > ETA:
        counts.append(math.ceil(counts[-1] / ETA))
    steps = max(len(counts) - 1, 1)
    # geometric from first to last; a single round takes all
    units = [round(first * (last / first) ** (i / steps)) for i in range(len(counts))] if len(counts) > 1 else [last]
    made = Schedule(candidates=tuple(counts), units=tuple(units), held_out=held, edits=0, kept=0)
    sizes = [len(unit) for unit in given.choosing]
    before, total = 0, 0
    for count, number in zip(counts, units, strict=True):
        # a longer sequence begins anew; of other cases only the new ones are edited
        done = 0 if given.scenario == "sequential" and number > before else sum(sizes[:before])
        total += count * (sum(sizes[:number]) - done)
        before = number
    if held:
        kept = 2 * sum(len(unit) for unit in given.held_out[:held])
    else:
        # the untuned settings may have left after the first round
        begun = 0 if given.scenario == "sequential" and units[-1] > units[0] else units[0]
        kept = sum(sizes[begun : units[-1]])
    return evolve(made, edits=total + kept, kept=kept)
