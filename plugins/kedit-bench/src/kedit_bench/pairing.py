"""Which metrics of two cells may be compared, and the differences of their cases."""

from __future__ import annotations

import math
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
            if left.value is not None and right.value is not None and not _is_whole(left):
                yield from self._column(name, None, left, left.cases, right.cases)
            for part, scores in left.case_parts.items():
                if part in right.case_parts and part in left.parts and part in right.parts:
                    yield from self._column(name, part, left, scores, right.case_parts[part])
        for name in self.b.evaluation:
            if name not in self.a.evaluation:
                self._refuse(name, "only B has it; run A with it, too")

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
        if left.cases and (left.value is None or right.value is None) and not left.parts:
            return "its cases are of several sources and have no common mean; run the sources as datasets of their own"
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
        if not all(math.isfinite(value) for pair in values for value in pair):
            self._refuse(name, "it has scores that are no numbers; look at its cases")
            return
        if not both:
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


def _is_whole(result: MetricResult) -> bool:
    """Whether the value is made of means and is none itself; its sub-keys are compared instead."""
    return any(name in WHOLES for name in result.statistics)


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
