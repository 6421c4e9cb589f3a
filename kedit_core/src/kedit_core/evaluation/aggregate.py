"""From scores of cases to a result: the one place where means are taken, so a combined run and a whole one agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, harmonic_mean, median, pstdev
from typing import Any

from attrs import evolve

from kedit_core.contract import MetricResult
from kedit_core.errors import InputError
from kedit_core.evaluation.tags import Tag


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the values lie, linear between neighbours."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


STATISTICS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "median": median,
    "p95": lambda values: percentile(values, 0.95),
    "max": max,
    "std": pstdev,
}
WHOLES: Mapping[str, str] = {
    "total": "value and parts are sums over the cases",
    "harmonic_mean": "the value is the harmonic mean of the sub-keys' means, None while there is no case",
}
"""Statistics that say how the value follows, in place of the mean over the cases."""


def metric_result(
    cases: Mapping[str, float],
    *,
    tag: str,
    case_parts: Mapping[str, Mapping[str, float]] | None = None,
    unit: str = "share",
    outputs: Sequence[Mapping[str, Any]] = (),
    statistics: tuple[str, ...] = (),
    left_out: int = 0,
) -> MetricResult:
    """A result whose value, parts and statistics follow from the cases.

    The value is the mean over the cases, unless one of the ``statistics`` is of :data:`WHOLES`.

    Raises InputError for a statistic that is not one of :data:`STATISTICS` or :data:`WHOLES`, that has a sub-key's
    name, or that is the second of WHOLES.
    """
    by_part = {part: dict(scores) for part, scores in (case_parts or {}).items() if scores}
    for name in statistics:
        if name not in (*STATISTICS, *WHOLES) or name in by_part:
            known = ", ".join((*STATISTICS, *WHOLES))
            raise InputError(f"statistic {name!r} of {tag} is unknown or also a sub-key's name; there are {known}")
    wholes = [name for name in statistics if name in WHOLES]
    if len(wholes) > 1:
        raise InputError(f"the value of {tag} cannot be {' and '.join(wholes)} at once; name one")
    scores = list(cases.values())
    together: Callable[[list[float]], float] = sum if "total" in wholes else fmean
    parts = {part: float(together(list(of_part.values()))) for part, of_part in by_part.items()}
    value = float(together(scores)) if scores else None
    if scores and "harmonic_mean" in wholes:
        value = float(harmonic_mean(list(parts.values()))) if parts else None
    parts |= {name: float(STATISTICS[name](scores)) for name in statistics if scores and name in STATISTICS}
    return MetricResult(
        value=value,
        tag=tag,
        cases=dict(cases),
        parts=parts,
        unit=unit,
        outputs=tuple(outputs),
        case_parts=by_part,
        statistics=statistics,
        left_out=left_out,
    )


def combine_results(name: str, results: Sequence[MetricResult]) -> MetricResult:
    """One result over the cases of several, as if they had been evaluated together; case ids must differ.

    Raises InputError when tags (apart from n), units or statistics differ.
    """
    tags = [Tag.parse(result.tag) for result in results]
    kinds = {(tag.counting(0), result.unit, result.statistics) for tag, result in zip(tags, results, strict=True)}
    if len(kinds) != 1:
        found = ", ".join(sorted({result.tag for result in results}))
        raise InputError(
            f"results of {name!r} differ in how they were made ({found}) and are never averaged; report them apart"
        )
    parts: dict[str, dict[str, float]] = {}
    for result in results:
        for part, scores in result.case_parts.items():
            parts.setdefault(part, {}).update(scores)
    return metric_result(
        {case: score for result in results for case, score in result.cases.items()},
        tag=str(tags[0].counting(sum(tag.n for tag in tags))),
        case_parts=parts,
        unit=results[0].unit,
        outputs=[output for result in results for output in result.outputs],
        statistics=results[0].statistics,
        left_out=sum(result.left_out for result in results),
    )


def rename_cases(result: MetricResult, names: Mapping[str, str]) -> MetricResult:
    """The same result with cases called otherwise; those not in ``names`` keep theirs."""

    def named(scores: Mapping[str, float]) -> dict[str, float]:
        return {names.get(case, case): score for case, score in scores.items()}

    return evolve(
        result,
        cases=named(result.cases),
        case_parts={part: named(scores) for part, scores in result.case_parts.items()},
        outputs=tuple(
            {**output, "case": names.get(output["case"], output["case"])} if "case" in output else output
            for output in result.outputs
        ),
    )
