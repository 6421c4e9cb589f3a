"""Which metrics of two cells may be compared, and the differences of their cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from attrs import asdict, define, field

from kedit_bench.differences import Difference, Refusal
from kedit_bench.report.facts import facts_of
from kedit_bench.report.reading import Cell
from kedit_core.contract import MetricResult
from kedit_core.evaluation import Tag
from kedit_core.evaluation.aggregate import WHOLES

_COSTS = "efficiency."
_HUGE = 1e150  # whose square is a number, too


@define
class Column:
    """A difference in the making: without its interval, which the differences of the cases give (empty: none can)."""

    found: Difference
    by_case: Sequence[float] = field(repr=False)


@define
class Pairing:
    """Two cells that are held against each other.

    Attributes:
        told: what the benches say of their metrics beside the results.
        level: of the intervals.
        refused: what was not compared, filled by :meth:`columns`.
    """

    a: Cell
    b: Cell
    told: Mapping[str, Mapping[str, Any]]
    level: float
    refused: list[Refusal] = field(factory=list)

    def columns(self) -> Iterator[Column]:
        """A column for each metric and sub-key that both cells have and that may be compared."""
        stranger = _stranger(self.a, self.b)
        if stranger is not None:
            self._refuse("all", f"case {stranger} asks something else in the two; run both on the same requests")
            return
        for name, left in self.a.evaluation.items():
            right = self.b.evaluation.get(name)
            reason = "only A has it; run B with it, too" if right is None else self._reason(left, right)
            if reason is not None or right is None:
                self._refuse(name, str(reason))
                continue
            if (without := _without_mean(left, right)) is None:
                yield from self._column(name, None, left, left.cases, right.cases)
            else:
                self._refuse(name, without)
            yield from self._parts(name, left, right)
        for name in self.b.evaluation:
            if name not in self.a.evaluation:
                self._refuse(name, "only B has it; run A with it, too")

    def _parts(self, name: str, left: MetricResult, right: MetricResult) -> Iterator[Column]:
        """A column for each sub-key; those without a value are of several sources, as their metric is."""
        sides = [[part for part in each.case_parts if part in each.parts] for each in (left, right)]
        for part in dict.fromkeys((*sides[0], *sides[1])):
            absent = [side for side, there in zip("AB", sides, strict=True) if part not in there]
            if not absent:
                yield from self._column(name, part, left, left.case_parts[part], right.case_parts[part])
            else:
                self._refuse(_called(name, part), f"{absent[0]} has no value of this sub-key")

    def _refuse(self, metric: str, reason: str) -> None:
        self.refused.append(Refusal(metric=metric, reason=reason))

    def _reason(self, left: MetricResult, right: MetricResult) -> str | None:
        """Why a metric cannot be compared, None when it can."""
        tags = [Tag.parse(result.tag) for result in (left, right)]
        if self.a.scenario.kind == "single":  # each case was alone on the model, however many there were
            tags = [tag.counting(0) for tag in tags]
        one, other = ({**asdict(tag), "unit": each.unit} for tag, each in zip(tags, (left, right), strict=True))
        unlike = [f"{name} {one[name]} in A, {other[name]} in B" for name in one if one[name] != other[name]]
        if unlike:
            return f"the two were measured differently ({'; '.join(unlike)}) and are never held against each other"
        if "total" in left.statistics:
            return "it is a total, no mean over cases; compare the metrics that it counts"
        if not set(left.cases) & set(right.cases):
            return "the two have no case in common" if left.cases or right.cases else "it has no cases"
        return None

    def _column(
        self,
        name: str,
        part: str | None,
        result: MetricResult,
        left: Mapping[str, float],
        right: Mapping[str, float],
    ) -> Iterator[Column]:
        both = sorted(set(left) & set(right))
        values = [(left[case], right[case]) for case in both]
        if not all(abs(value) < _HUGE for pair in values for value in pair):  # NaN is not, either
            self._refuse(_called(name, part), "it has scores that are no numbers; look at its cases")
            return
        if not both:
            self._refuse(_called(name, part), "the two have no case in common")
            return
        by_case = [other - one for one, other in values]
        found = Difference(
            metric=name,
            part=part,
            unit=result.unit,
            better=facts_of(name, result.unit, self.told).better,
            tag=result.tag,
            a=fmean(one for one, _ in values),
            b=fmean(other for _, other in values),
            difference=fmean(by_case),
            low=None,
            high=None,
            p=None,
            level=self.level,
            pairs=len(both),
            only_a=len(left) - len(both),
            only_b=len(right) - len(both),
        )
        shared = name.startswith(_COSTS) and not _alone(self.a)
        yield Column(found=found, by_case=[] if shared else by_case)


def _alone(cell: Cell) -> bool:
    """Whether each case was edited by itself, so that what it cost was measured for it."""
    return cell.scenario.kind == "single" or (cell.scenario.kind == "sequential" and cell.scenario.batch_size == 1)


def _without_mean(left: MetricResult, right: MetricResult) -> str | None:
    """Why a metric's own value cannot be compared though its sub-keys can; None when it is a mean over cases."""
    if left.value is None or right.value is None:
        return "its cases are of several sources and have no common mean; run the sources as datasets of their own"
    made = next((name for name in WHOLES if name in (*left.statistics, *right.statistics)), None)
    if made is not None:
        return f"its value is a {made.replace('_', ' ')}, no mean over cases; its sub-keys are compared by themselves"
    return None


def _called(name: str, part: str | None) -> str:
    return name if part is None else f"{name}: {part}"


def _stranger(a: Cell, b: Cell) -> str | None:
    """A case that has the same id in both and another edit prompt; None where the outputs show none."""
    left, right = _prompts(a), _prompts(b)
    return next((case for case, prompts in left.items() if case in right and prompts != right[case]), None)


def _prompts(cell: Cell) -> dict[str, set[str]]:
    """case -> its edit prompts, as far as outputs were kept."""
    found: dict[str, set[str]] = {}
    for result in cell.evaluation.values():
        for output in result.outputs:
            if output.get("kind") == "reliability" and "case" in output:
                found.setdefault(str(output["case"]), set()).add(str(output.get("prompt")))
    return found
