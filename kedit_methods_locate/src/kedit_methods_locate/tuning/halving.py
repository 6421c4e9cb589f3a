"""Successive halving: all candidates on a few cases, the better half on more, until one is left. Imports no torch.

Jamieson and Talwalkar 2016 (arXiv 1502.07943), with the candidates of a round taken case by case, so that a run that
stops early still compares them on the same cases. What was measured in one round is not measured again in the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from attrs import define, field, frozen

from kedit_core.errors import KeditError, MethodError
from kedit_methods_locate.tuning.budget import Budget
from kedit_methods_locate.tuning.candidates import Candidate
from kedit_methods_locate.tuning.schedule import ETA, Group
from kedit_methods_locate.tuning.scoring import Outcome, Score, scored

Measure: TypeAlias = Callable[[Candidate, Group], Outcome]
"""Edits a group with a candidate's settings and measures it; raises KeditError when the candidate cannot do it."""
Stop: TypeAlias = Literal["budget", "interrupted"]


@frozen(kw_only=True)
class Standing:
    """A candidate in one round.

    Attributes:
        number: the candidate's.
        score: on the cases that all of the round were measured on; None when it failed or was not measured.
        failed: why it failed.
        kept: whether it goes on; after the last round, whether it is the winner.
    """

    number: int
    score: Score | None
    failed: str | None = None
    kept: bool = False


@frozen(kw_only=True)
class Round:
    """What a round found, best first, those that failed last.

    Attributes:
        groups: what the scores stand on.
        complete: False when the run stopped before all was measured.
    """

    standings: tuple[Standing, ...]
    groups: tuple[Group, ...]
    complete: bool = True

    @property
    def cases(self) -> int:
        """How many cases the scores stand on."""
        return max((standing.score.cases for standing in self.standings if standing.score is not None), default=0)


@frozen(kw_only=True)
class Halved:
    """The end of it.

    Attributes:
        rounds: what each found.
        winner: who is left.
        score, groups: the winner's in the last round that measured it, and what that stands on.
        stopped: what ended it early.
    """

    rounds: tuple[Round, ...]
    winner: Candidate
    score: Score
    groups: tuple[Group, ...]
    stopped: Stop | None


@define
class Ledger:
    """What was measured, once for each candidate and group.

    Attributes:
        measure: called for what is not there yet.
        budget: told of every edit.
        failures: candidate's number -> why.
        stopped: why nothing more is measured.
    """

    measure: Measure
    budget: Budget
    failures: dict[int, str] = field(factory=dict)
    stopped: Stop | None = None
    _outcomes: dict[tuple[int, Group], Outcome] = field(factory=dict, init=False)

    def has(self, candidate: Candidate, group: Group) -> bool:
        """Whether it was measured."""
        return (candidate.number, group) in self._outcomes

    def fill(self, candidates: Sequence[Candidate], groups: Sequence[Group], kept: int = 0) -> None:
        """Measure what is missing, group by group, until the budget is spent but for ``kept`` edits, or Ctrl-C."""
        for group in groups:
            for candidate in candidates:
                if self.stopped or self.has(candidate, group) or candidate.number in self.failures:
                    continue
                if (self._outcomes or self.failures) and not self.budget.allows(len(group), kept):
                    self.stopped = "budget"
                    return
                self._one(candidate, group)

    def _one(self, candidate: Candidate, group: Group) -> None:
        before = self.budget.clock()
        edits = len(group)
        try:
            self._outcomes[candidate.number, group] = self.measure(candidate, group)
        except KeyboardInterrupt:
            if not self._outcomes:
                raise
            self.stopped, edits = "interrupted", 0
        except KeditError as error:
            self.failures[candidate.number] = str(error)
        finally:
            self.budget.record(edits, self.budget.clock() - before)

    def score(self, candidate: Candidate, groups: Sequence[Group]) -> Score | None:
        """On these groups, or None when one of them was not measured."""
        found = [self._outcomes.get((candidate.number, group)) for group in groups]
        known = [outcome for outcome in found if outcome is not None]
        return scored(known) if known and len(known) == len(found) else None


def halve(
    candidates: Sequence[Candidate],
    rounds: Sequence[Sequence[Group]],
    ledger: Ledger,
    kept: int = 0,
    on_round: Callable[[int, int], None] | None = None,
) -> Halved:
    """Run the rounds.

    Args:
        candidates: at least one.
        rounds: the groups of each.
        ledger: measures, within its budget.
        kept: edits of the budget that are left for later.
        on_round: called with the number of each round and of the candidates in it.

    Raises:
        MethodError: every candidate failed.
        KeyboardInterrupt: before anything was measured.
    """
    alive = list(candidates)
    told: list[Round] = []
    for number, groups in enumerate(rounds):
        if on_round is not None:
            on_round(number, len(alive))
        ledger.fill(alive, groups, kept)
        entered, alive = alive, [each for each in alive if each.number not in ledger.failures]
        if not alive:
            first = ledger.failures[candidates[0].number]
            raise MethodError(f"all {len(candidates)} settings that were tried failed; the first because {first}")
        shared = _shared(alive, groups, ledger, first=number == 0)
        ranked = _ranked(alive, shared, ledger) if shared else [(each, None) for each in alive]
        last = number == len(rounds) - 1 or ledger.stopped is not None
        if number == 0 and ranked[0][1] is None:
            raise MethodError(
                f"the budget was spent before any setting was measured, with {len(ledger.failures)} that failed; give "
                "a larger one"
            )
        going = 1 if last else math.ceil(len(ranked) / ETA)
        told.append(_round(entered, ranked, going, shared, ledger))
        alive = [each for each, _ in ranked[:going]]
        if last or len(alive) == 1:
            break
    winner = alive[0]
    score, based_on = next(
        (standing.score, each.groups)
        for each in reversed(told)
        for standing in each.standings
        if standing.number == winner.number and standing.score is not None
    )
    return Halved(rounds=tuple(told), winner=winner, score=score, groups=based_on, stopped=ledger.stopped)


def _shared(alive: Sequence[Candidate], groups: Sequence[Group], ledger: Ledger, first: bool) -> tuple[Group, ...]:
    """The groups that all were measured on.

    Where there is none: in the first round the first group, since who was measured is better known than who was not;
    later (a sequence that stopped) none, and the order of the round before stays.
    """
    shared = tuple(group for group in groups if all(ledger.has(each, group) for each in alive))
    return shared or (tuple(groups[:1]) if first else ())


def _ranked(
    alive: Sequence[Candidate], shared: Sequence[Group], ledger: Ledger
) -> list[tuple[Candidate, Score | None]]:
    scores = [(each, ledger.score(each, shared)) for each in alive]
    known = [(each, score) for each, score in scores if score is not None]
    unknown = [(each, score) for each, score in scores if score is None]
    return [*sorted(known, key=lambda pair: (pair[1].key, pair[0].number)), *unknown]


def _round(
    entered: Sequence[Candidate],
    ranked: Sequence[tuple[Candidate, Score | None]],
    going: int,
    groups: tuple[Group, ...],
    ledger: Ledger,
) -> Round:
    standings = [
        Standing(number=each.number, score=score, kept=place < going) for place, (each, score) in enumerate(ranked)
    ]
    failed = [
        Standing(number=each.number, score=None, failed=ledger.failures[each.number])
        for each in entered
        if each.number in ledger.failures
    ]
    return Round(standings=(*standings, *failed), groups=groups, complete=ledger.stopped is None)
