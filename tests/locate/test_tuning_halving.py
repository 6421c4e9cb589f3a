"""Successive halving with made-up trials: what is kept, what it may cost, what stops it, what counts as better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

import pytest
from attrs import frozen
from hypothesis import given as over
from hypothesis import settings as bounded
from hypothesis import strategies as st

from kedit_core import EditRequest, HyperParams
from kedit_core.editing.progress import silent
from kedit_core.errors import MethodError
from kedit_methods_locate.tuning.budget import Budget
from kedit_methods_locate.tuning.candidates import Candidate, Candidates
from kedit_methods_locate.tuning.halving import Halved, Ledger, halve
from kedit_methods_locate.tuning.running import run
from kedit_methods_locate.tuning.schedule import Group, Material, material, schedule
from kedit_methods_locate.tuning.scoring import Outcome, Score, scored


@frozen(kw_only=True)
class Knob(HyperParams):
    turn: int = 0


def candidates(count: int) -> list[Candidate]:
    return [Candidate(number, {"turn": number} if number else {}, Knob(turn=number)) for number in range(count)]


def cases(count: int, requests: int = 1) -> list[tuple[EditRequest, ...]]:
    return [
        tuple(EditRequest(prompt=f"{case} {i}", target_new="x", case_id=str(case)) for i in range(requests))
        for case in range(count)
    ]


def groups(count: int) -> list[Group]:
    return [Group(case) for case in cases(count)]


class Bench:
    """Trials with known outcomes; remembers what was asked of it."""

    def __init__(self, quality: Callable[[int, Group], float], clock: list[float] | None = None, takes: float = 1.0):
        self.quality, self.clock, self.takes = quality, clock, takes
        self.asked: list[tuple[int, Group]] = []

    def __call__(self, candidate: Candidate, group: Group) -> Outcome:
        self.asked.append((candidate.number, group))
        if self.clock is not None:
            self.clock[0] += self.takes * len(group)
        value = self.quality(candidate.number, group)
        return Outcome(
            cases={"reliability": [value] * len({request.case_id for request in group.requests})},
            edits=len(group),
            seconds=self.takes,
        )


def better_with_number(number: int, _: Group) -> float:
    return number / 100


def ledger(bench: Callable[[Candidate, Group], Outcome], edits: int | None = None) -> Ledger:
    return Ledger(bench, Budget(edits=edits))


def standings(found: Halved) -> list[list[int]]:
    return [[standing.number for standing in each.standings] for each in found.rounds]


# ------------------------------------------------------------------ the rounds
def test_the_better_half_goes_on_until_one_is_left() -> None:
    bench, units = Bench(better_with_number), groups(8)
    found = halve(candidates(8), [units[:2], units[:4], units], ledger(bench))
    assert standings(found) == [[7, 6, 5, 4, 3, 2, 1, 0], [7, 6, 5, 4], [7, 6]]
    assert [each.cases for each in found.rounds] == [2, 4, 8]
    assert (found.winner.number, found.score.value, found.score.cases, found.stopped) == (7, 0.07, 8, None)
    assert len(bench.asked) == len(set(bench.asked)) == 8 * 2 + 4 * 2 + 2 * 4, "nothing is measured twice"


@pytest.mark.parametrize("count", range(2, 13))
def test_fewer_and_fewer_on_more_and_more(count: int) -> None:
    units = groups(16)
    planned = schedule(given_of(16, 0), count)
    found = halve(candidates(count), [units[:n] for n in planned.units], ledger(Bench(better_with_number)))
    sizes = [len(each.standings) for each in found.rounds]
    assert sizes == list(planned.candidates)
    assert all(one > other for one, other in pairwise(sizes)) and sizes[-1] == 2
    assert list(planned.units) == sorted(planned.units) and planned.units[-1] == 16
    assert found.winner.number == count - 1


def test_a_late_bloomer_is_judged_by_all_its_cases() -> None:
    """The score of a round is over all cases so far, not over the new ones alone."""
    units = groups(4)
    table = {0: [1.0, 1.0, 0.0, 0.0], 1: [0.6, 0.6, 0.6, 0.6]}
    bench = Bench(lambda number, group: table[number][units.index(group)])
    found = halve(candidates(2), [units[:2], units], ledger(bench))
    assert found.rounds[0].standings[0].number == 0, "two are left for one round only"
    assert len(found.rounds) == 1 and found.score.value == 1.0
    found = halve(candidates(2), [units], ledger(bench))
    assert found.winner.number == 1
    assert found.score.value == pytest.approx(fmean(table[1]))


# ------------------------------------------------------------------ what counts as better
def score(size: float | None = None, **metrics: float) -> Score:
    return scored([Outcome(cases={k: [v] for k, v in metrics.items()}, edits=1, seconds=1.0, size=size)])


def test_the_score_is_the_harmonic_mean_over_pooled_cases() -> None:
    first = Outcome(cases={"reliability": [1.0, 0.5], "locality": [0.8]}, edits=2, seconds=3.0, size=0.1)
    second = Outcome(cases={"reliability": [0.3], "locality": []}, edits=1, seconds=1.5, size=0.3, warnings={"w": 2})
    found = scored([first, second])
    assert found.metrics == {"reliability": pytest.approx(0.6), "locality": pytest.approx(0.8)}
    assert found.value == pytest.approx(2 / (1 / 0.6 + 1 / 0.8))
    assert (found.cases, found.size, found.seconds, found.warnings) == (3, pytest.approx(0.2), 1.5, {"w": 2})
    assert score(reliability=1.0, locality=0.0).value == 0.0
    assert scored([Outcome(cases={"reliability": []}, edits=1, seconds=1.0)]).metrics == {}


def test_ties_go_to_the_plain_mean_then_to_the_smaller_change_then_to_the_first() -> None:
    nothing, something = score(reliability=0.0, locality=0.5), score(reliability=0.0, locality=0.9)
    assert something.key < nothing.key
    small, large = score(0.1, reliability=1.0), score(0.2, reliability=1.0)
    assert small.key < large.key
    # 0.1 + 0.2 and 0.3 are one score
    assert score(reliability=0.1 + 0.2).key == score(reliability=0.3).key
    sizes = {0: 0.5, 1: 0.2, 2: 0.2, 3: 0.9}

    def measure(candidate: Candidate, group: Group) -> Outcome:
        return Outcome(cases={"reliability": [1.0]}, edits=1, seconds=1.0, size=sizes[candidate.number])

    assert standings(halve(candidates(4), [groups(1)], ledger(measure))) == [[1, 2, 0, 3]]


# ------------------------------------------------------------------ failures
def test_a_failure_is_told_and_the_others_go_on() -> None:
    units = groups(4)

    def quality(number: int, group: Group) -> float:
        if number == 3 or (number == 2 and group is units[2]):
            raise MethodError(f"no such thing as {number}")
        return number / 10

    bench = Bench(quality)
    found = halve(candidates(5), [units[:2], units], ledger(bench))
    first, second = found.rounds
    assert [s.number for s in first.standings] == [4, 2, 1, 0, 3]
    assert first.standings[-1].failed == "no such thing as 3" and first.standings[-1].score is None
    assert sum(number == 3 for number, _ in bench.asked) == 1, "nobody asks again"
    assert [(s.number, s.failed) for s in second.standings] == [(4, None), (2, "no such thing as 2")]
    assert found.winner.number == 4


def test_when_all_fail_the_first_reason_is_told() -> None:
    def measure(candidate: Candidate, _: Group) -> Outcome:
        raise MethodError(f"it is {candidate.number} o'clock")

    with pytest.raises(MethodError, match="all 3 settings that were tried failed; the first because it is 0 o'clock"):
        halve(candidates(3), [groups(2)], ledger(measure))
    with pytest.raises(MethodError, match="before any setting was measured, with 2 that failed"):
        halve(candidates(3), [groups(2)], ledger(measure, edits=2))


def test_an_error_of_our_own_is_no_failed_setting() -> None:
    def measure(candidate: Candidate, _: Group) -> Outcome:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        halve(candidates(3), [groups(2)], ledger(measure))


# ------------------------------------------------------------------ stopping
def test_a_run_that_stops_compares_on_the_same_cases() -> None:
    """The budget ends after two candidates had a third case, on which one of them was lucky."""
    units = groups(3)
    table = {0: [0.1, 0.1, 1.0], 1: [0.2, 0.2, 0.0], 2: [0.4, 0.4, 0.0], 3: [0.3, 0.3, 0.0]}
    bench = Bench(lambda number, group: table[number][units.index(group)])
    found = halve(candidates(4), [units, units], ledger(bench, edits=10))
    assert len(bench.asked) == 10 and found.stopped == "budget"
    assert standings(found) == [[2, 3, 1, 0]] and not found.rounds[0].complete
    assert (found.winner.number, found.score.cases) == (2, 2)


def test_a_run_that_stops_at_once_chooses_among_those_it_has_seen() -> None:
    found = halve(candidates(4), [groups(2)], ledger(Bench(better_with_number), edits=3))
    assert found.winner.number == 2 and standings(found) == [[2, 1, 0, 3]]
    assert found.rounds[0].standings[-1].score is None


@pytest.mark.parametrize("after", range(1, 14))
def test_an_interrupted_run_gives_the_best_so_far(after: int) -> None:
    units = groups(4)

    def quality(number: int, _: Group) -> float:
        if len(bench.asked) > after:
            raise KeyboardInterrupt
        return number / 10

    bench = Bench(quality)
    book = ledger(bench)
    found = halve(candidates(4), [units[:2], units], book)
    stopped = after < 4 * 2 + 2 * 2
    assert found.stopped == ("interrupted" if stopped else None)
    assert found.winner.number == (min(after, 4) - 1 if after < 4 else 3)
    assert book.budget.spent == min(after, 12)


def test_an_interruption_before_anything_is_known_goes_on_its_way() -> None:
    def measure(candidate: Candidate, group: Group) -> Outcome:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        halve(candidates(2), [groups(1)], ledger(measure))


def test_a_sequence_that_stops_keeps_the_order_of_the_round_before() -> None:
    rounds = [[Group(cases(2)[0])], [Group((*cases(2)[0], *cases(2)[1]))]]
    found = halve(candidates(4), rounds, ledger(Bench(better_with_number), edits=4 + 2))
    assert found.stopped == "budget" and found.winner.number == 3
    assert found.groups == tuple(rounds[0]) and found.rounds[1].standings[0].score is None


# ------------------------------------------------------------------ schedules and budgets
def given_of(choosing: int, held: int, scenario: Any = "single", size: int = 1) -> Material:
    units = groups(choosing + held)
    return Material(
        choosing=tuple(units[:choosing]), held_out=tuple(units[choosing:]), scenario=scenario, batch_size=size
    )


@bounded(max_examples=150, deadline=None)
@over(st.integers(2, 12), st.integers(1, 20), st.integers(0, 5), st.integers(1, 200), st.booleans())
def test_a_budget_of_edits_is_kept(count: int, choosing: int, held: int, edits: int, sequence: bool) -> None:
    """The schedule fits when anything does; the run never spends more than the budget, whatever was scheduled."""
    given = given_of(choosing, held, "sequential" if sequence else "single")
    planned = schedule(given, count, edits)
    least = schedule(given, 2, edits=0)
    assert planned.edits <= max(edits, least.edits)
    assert planned.edits >= least.edits and planned.candidates[0] >= 2
    assert all(one > other for one, other in pairwise(planned.candidates))
    if edits < least.edits:
        return  # refused before anything is run
    bench, budget = Bench(better_with_number), Budget(edits=edits)
    found = Candidates(tuple(candidates(count)))
    run(bench, given, found, planned, budget, silent, lambda _: None)
    assert budget.spent == sum(len(group) for _, group in bench.asked)
    assert budget.spent <= edits


@pytest.mark.parametrize("sequence", [False, True])
def test_the_schedule_counts_what_is_run(sequence: bool) -> None:
    given = given_of(16, 6, "sequential" if sequence else "single")
    planned = schedule(given, 9)
    bench = Bench(better_with_number)
    run(bench, given, Candidates(tuple(candidates(9))), planned, Budget(), silent, lambda _: None)
    assert planned.candidates == (9, 5, 3, 2) and planned.units == (4, 6, 10, 16)
    assert sum(len(group) for _, group in bench.asked) == planned.edits
    expected = 9 * 4 + 5 * 6 + 3 * 10 + 2 * 16 if sequence else 9 * 4 + 5 * 2 + 3 * 4 + 2 * 6
    assert planned.edits - planned.kept == expected and planned.kept == 2 * 6


def test_the_check_is_on_cases_that_nobody_was_chosen_by() -> None:
    given = given_of(4, 3)
    held = set(given.held_out)
    bench = Bench(lambda number, group: [0.9, 0.2, 0.5][number] if group in held else number / 10)
    ended = run(bench, given, Candidates(tuple(candidates(3))), schedule(given, 3), Budget(), silent, lambda _: None)
    assert ended.halved.winner.number == 2 and ended.check is not None
    check = ended.check
    assert check.held_out and check.winner.cases == 3 and check.untuned is not None
    assert (check.winner.value, check.untuned.value) == (pytest.approx(0.5), pytest.approx(0.9))
    assert {number for number, group in bench.asked if group in held} == {0, 2}


def test_without_cases_to_spare_the_untuned_settings_are_taken_along_to_the_last() -> None:
    given = given_of(6, 0)
    bench = Bench(better_with_number)
    ended = run(bench, given, Candidates(tuple(candidates(5))), schedule(given, 5), Budget(), silent, lambda _: None)
    assert ended.check is not None and not ended.check.held_out
    assert ended.check.untuned is not None and ended.check.untuned.cases == ended.check.winner.cases == 6
    assert len(bench.asked) == len(set(bench.asked))


def test_what_is_kept_for_the_check_is_there_when_the_rounds_are_over() -> None:
    units = groups(8)
    book = ledger(Bench(better_with_number), edits=14)
    found = halve(candidates(6), [units[:4], units], book, kept=4)
    assert found.stopped == "budget" and book.budget.spent == 10
    ended = run(
        Bench(better_with_number, clock := [0.0], takes=5.0),
        given := given_of(8, 2),
        Candidates(tuple(candidates(6))),
        schedule(given, 6),
        Budget(seconds=100.0, clock=lambda: clock[0]),
        silent,
        lambda _: None,
    )
    assert clock[0] <= 100 and ended.check is not None and ended.check.held_out and ended.check.winner.cases >= 1


def test_a_winner_that_fails_on_other_cases_says_so() -> None:
    given = given_of(4, 2)

    def quality(number: int, group: Group) -> float:
        if number == 2 and group in given.held_out:
            raise MethodError("the sun was in its eyes")
        return number / 10

    told: list[str] = []
    found = Candidates(tuple(candidates(3)))
    ended = run(Bench(quality), given, found, schedule(given, 3), Budget(), silent, told.append)
    assert ended.check is None and "not checked on other cases: the sun was in its eyes" in told[-1]


@pytest.mark.parametrize("minutes", [0.05, 0.2, 0.5, 1.0, 3.0])
def test_a_budget_of_time_is_kept_and_said(minutes: float) -> None:
    """Every edit takes two seconds of a clock of our own; 10 s had gone before the first."""
    clock = [0.0]
    budget = Budget(seconds=60 * minutes, clock=lambda: clock[0])
    clock[0] = 10.0
    bench = Bench(better_with_number, clock, takes=2.0)
    given, found = given_of(8, 2), Candidates(tuple(candidates(6)))
    planned = schedule(given, 6)
    told: list[str] = []
    ended = run(bench, given, found, planned, budget, silent, told.append)
    assert clock[0] <= max(60 * minutes, 10.0 + 2.0)
    assert "took 2 s each" in told[0] and f"about {2 * planned.edits} s" in told[0]
    enough = 10 + 2 * planned.edits <= 60 * minutes
    assert enough is (minutes == 3.0)
    assert any("there is time for about" in text for text in told) is not enough
    if enough:
        assert ended.halved.winner.number == 5 and ended.halved.stopped is None


# ------------------------------------------------------------------ the cases
def ids(units: Sequence[Group]) -> list[str]:
    return [str(request.case_id) for unit in units for request in unit.requests]


def test_cases_are_shuffled_by_the_seed_and_never_used_twice() -> None:
    first = material(cases(40), "single", None, 16, seed=3)
    again, other = material(cases(40), "single", None, 16, seed=3), material(cases(40), "single", None, 16, seed=4)
    assert ids(first.choosing) == ids(again.choosing) != ids(other.choosing)
    assert len(first.choosing) == 16 and len(first.held_out) == 16
    assert not set(ids(first.choosing)) & set(ids(first.held_out))
    assert ids(first.choosing) != sorted(ids(first.choosing), key=int)


@pytest.mark.parametrize(("count", "choosing", "held"), [(1, 1, 0), (7, 7, 0), (8, 6, 2), (20, 15, 5), (24, 16, 8)])
def test_how_many_are_held_out(count: int, choosing: int, held: int) -> None:
    found = material(cases(count), "single", None, 16, seed=0)
    assert (len(found.choosing), len(found.held_out)) == (choosing, held)


def test_a_case_of_several_requests_stays_together() -> None:
    found = material(cases(9, requests=2), "single", None, 16, seed=0)
    assert all(len(unit) == 2 and len({r.case_id for r in unit.requests}) == 1 for unit in found.choosing)
    assert schedule(found, 2).edits == 2 * 2 * len(found.choosing) + 2 * 2 * len(found.held_out)


@pytest.mark.parametrize(
    ("count", "size", "width", "choosing", "held"),
    [
        (3, None, 3, 1, 0),
        (12, None, 6, 1, 1),
        (40, None, 8, 2, 2),
        (40, 5, 5, 3, 3),
        (6, 10, 6, 1, 0),
        (11, 4, 4, 1, 1),
    ],
)
def test_batches_are_whole(count: int, size: int | None, width: int, choosing: int, held: int) -> None:
    found = material(cases(count), "batch", size, 16, seed=0)
    assert [len(unit) for unit in (*found.choosing, *found.held_out)] == [width] * (choosing + held)
    assert (len(found.choosing), len(found.held_out)) == (choosing, held)
    assert found.groups(found.choosing) == found.choosing


def test_a_sequence_is_one_group() -> None:
    found = material(cases(12), "sequential", 3, 16, seed=0)
    (group,) = found.groups(found.choosing[:5])
    assert ids([group]) == ids(found.choosing[:5]) and found.batch_size == 3
