"""What a benchmark measures of an edit beside its evaluation: sizes of updates, retention by age, sources of a mix."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from attrs import define, evolve, field

from kedit_core.comparing.changes import change_of, operations_at
from kedit_core.comparing.spectra import Spectrum
from kedit_core.contract import MetricResult, hookimpl
from kedit_core.editing import EditContext, Editor, EditWarning
from kedit_core.evaluation import Evaluation, Tag, metric_result
from kedit_core.evaluation.efficiency import devices_of, synchronise
from kedit_core.patches import EditPatch, PatchStack, Replace

RANK_TOLERANCE = 1e-6  # of the largest singular value; about eight roundings of float32
COSTS = "efficiency."  # metrics that say what an edit costs, not how good it is
_SERIES = (1, 2, 5)


@define
class EditClock:
    """A plugin that adds up the seconds of computing patches."""

    seconds: float = 0.0

    @hookimpl(wrapper=True)
    def compute_patch(self, context: EditContext) -> Generator[None, Any, Any]:
        """Around the method's own."""
        devices = devices_of(context.model)
        synchronise(devices)
        started = time.perf_counter()
        try:
            return (yield)
        finally:
            synchronise(devices)
            self.seconds += time.perf_counter() - started


@define
class UpdateSizes:
    """Measures what patches add to each weight; remembers the norms of base weights, which take a pass over them."""

    stack: PatchStack
    _norms: dict[str, float] = field(factory=dict)

    def of(self, patch: EditPatch, case: str | int) -> list[dict[str, Any]]:
        """For each weight: the Frobenius norm of what is added, its ratio to the weight's own, and its rank.

        The rank is None where telling it would take a dense decomposition. Places where nothing can be said (modules,
        routers) are left out.
        """
        found: list[dict[str, Any]] = []
        for place in patch.places:
            operations = operations_at(patch, place)
            if not operations:
                continue
            packed = self.stack.place(place).packed
            replaced = any(isinstance(each, Replace) for each in operations)
            change = change_of(place, patch, self.stack.base(place).cpu() if replaced and not packed else None)
            if change is None:
                continue
            if place not in self._norms:
                # a packed weight has no numbers to take the norm of
                self._norms[place] = 0.0 if packed else float(self.stack.base(place).double().norm())
            size = self._norms[place]
            found.append(
                {
                    "case": case,
                    "place": place,
                    "norm": change.norm,
                    "relative": change.norm / size if size else None,
                    "rank": change.rank(RANK_TOLERANCE) if isinstance(change, Spectrum) else None,
                }
            )
        return found


def counted(warnings: Iterable[EditWarning]) -> list[dict[str, Any]]:
    """Warnings by kind: the first message of each, and how many there were."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for warning in warnings:
        first.setdefault(warning.code, f"{warning.message}; {warning.remedy}")
        counts[warning.code] += 1
    return [{"code": code, "message": first[code], "count": counts[code]} for code in first]


def merged_warnings(parts: Iterable[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The warnings of several parts as those of one."""
    found: dict[str, dict[str, Any]] = {}
    for warning in (warning for part in parts for warning in part):
        known = found.setdefault(warning["code"], {**warning, "count": 0})
        known["count"] += warning["count"]
    return list(found.values())


def tagged(evaluation: Evaluation, scenario: str, together: int | None = None) -> Evaluation:
    """The same evaluation as one of ``scenario``; ``together``: how many facts were on the model (None: as it says)."""

    def renamed(result: MetricResult) -> MetricResult:
        tag = evolve(Tag.parse(result.tag), scenario=scenario)
        return evolve(result, tag=str(tag if together is None else tag.counting(together)))

    return evolve(evaluation, metrics={name: renamed(result) for name, result in evaluation.metrics.items()})


def immediate_reading(editor: Editor, requests: Sequence[Any], protocols: Sequence[str]) -> dict[str, dict[str, float]]:
    """How the requests of a round are answered right after it: metric -> case -> score, of their own prompts only."""
    own = [evolve(request, locality={}, portability={}) for request in requests]
    evaluation = editor.evaluate(own, protocols=protocols)
    return {name: dict(result.cases) for name, result in evaluation.metrics.items() if result.cases}


def retention(rounds: Iterable[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Immediate readings of all rounds together; a case that several rounds wrote counts by its mean."""
    scores: dict[str, dict[str, list[float]]] = {}
    for reading in rounds:
        for name, cases in reading.items():
            for case, score in cases.items():
                scores.setdefault(name, {}).setdefault(case, []).append(score)
    found: dict[str, Any] = {}
    for name, by_case in scores.items():
        means = {case: fmean(each) for case, each in by_case.items()}
        found[name] = {"value": fmean(means.values()), "cases": means}
    return found


def by_age(evaluation: Evaluation, age_of: Mapping[str, int]) -> list[dict[str, Any]]:
    """Scores of the cases by how many rounds ago they were written (the last round: 1), in buckets 1, 2, 3-5, 6-10, ...

    Costs have no age.
    """
    buckets: list[dict[str, Any]] = []
    low, most = 1, max(age_of.values(), default=0)
    for high in _series():
        if low > most:
            break
        cases = {case for case, age in age_of.items() if low <= age <= high}
        metrics = {
            name: value
            for name, result in evaluation.metrics.items()
            if not name.startswith(COSTS) and (value := value_over(result, cases)) is not None
        }
        if cases:
            buckets.append({"from": low, "to": min(high, most), "edits": len(cases), "metrics": metrics})
        low = high + 1
    return buckets


def by_source(evaluation: Evaluation, source_of: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """source -> metric -> value over the source's own cases; empty where nothing is mixed."""
    found: dict[str, dict[str, float]] = {}
    for source in dict.fromkeys(source_of.values()):
        cases = {case for case, of_case in source_of.items() if of_case == source}
        values = {name: value_over(result, cases) for name, result in evaluation.metrics.items()}
        found[source] = {name: value for name, value in values.items() if value is not None}
    return found


def value_over(result: MetricResult, cases: Collection[str]) -> float | None:
    """A result's value if it had been taken over these cases alone."""
    return metric_result(
        {case: score for case, score in result.cases.items() if case in cases},
        tag=result.tag,
        case_parts={
            part: {case: score for case, score in scores.items() if case in cases}
            for part, scores in result.case_parts.items()
        },
        statistics=result.statistics,
    ).value


def apart(evaluation: Evaluation, source_of: Mapping[str, str]) -> Evaluation:
    """An evaluation of a mix without means over cases of different sources, whose probes ask different things.

    The cases keep their scores. Costs are the same thing everywhere, and keep their means.
    """

    def kept(name: str, result: MetricResult) -> MetricResult:
        if name.startswith(COSTS) or not _several(result.cases, source_of):
            return result
        parts = {
            part: result.parts[part]
            for part, scores in result.case_parts.items()
            if part in result.parts and not _several(scores, source_of)
        }
        return evolve(result, value=None, parts=parts)

    if not source_of:
        return evaluation
    return evolve(evaluation, metrics={name: kept(name, each) for name, each in evaluation.metrics.items()})


def _several(cases: Iterable[str], source_of: Mapping[str, str]) -> bool:
    return len({source_of.get(case) for case in cases}) > 1


def _series() -> Iterator[int]:
    """1, 2, 5, 10, 20, 50, 100, ..."""
    power = 1
    while True:
        yield from (power * step for step in _SERIES)
        power *= 10
