"""What one setting did on some facts, and which of two did better. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, harmonic_mean
from typing import Any, TypeAlias

from attrs import field, frozen

SCORED = ("reliability", "generalization", "locality")
"""What is scored by default, where the requests have probes for it."""

_DIGITS = 9  # sums of shares differ in the last bits with their order


@frozen(kw_only=True)
class Outcome:
    """One setting on one group of requests, edited and measured.

    Attributes:
        cases: metric -> the score of every case (0 to 1).
        edits: how many facts were edited.
        seconds: wall time, the evaluation included.
        size: Frobenius norm of the change relative to that of the weights changed; None for what changes no weight.
        warnings: code -> how often.
    """

    cases: Mapping[str, Sequence[float]]
    edits: int
    seconds: float
    size: float | None = None
    warnings: Mapping[str, int] = field(factory=dict)


Key: TypeAlias = tuple[float, float, float]


@frozen(kw_only=True)
class Score:
    """One setting on several groups.

    Attributes:
        value: harmonic mean of the metrics: near 1 only when all are, 0 when one is.
        metrics: metric -> mean over the cases.
        cases: how many.
        size: mean of the groups' relative sizes.
        seconds: for one edit, with its evaluation.
        warnings: code -> how often.
    """

    value: float
    metrics: Mapping[str, float]
    cases: int
    size: float | None
    seconds: float
    warnings: Mapping[str, int] = field(factory=dict)

    @property
    def key(self) -> Key:
        """For sorting, best first: the score; the plain mean (which also tells zeros apart); the smaller change."""
        mean = fmean(self.metrics.values()) if self.metrics else 0.0
        return (-round(self.value, _DIGITS), -round(mean, _DIGITS), self.size or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "score": self.value,
            "metrics": dict(self.metrics),
            "cases": self.cases,
            "size": self.size,
            "seconds": self.seconds,
            "warnings": dict(self.warnings),
        }


def scored(outcomes: Sequence[Outcome]) -> Score:
    """The score over all cases of some groups; a metric that no case has is left out."""
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.cases)
    pooled = {name: [s for outcome in outcomes for s in outcome.cases.get(name, ())] for name in names}
    metrics = {name: fmean(scores) for name, scores in pooled.items() if scores}
    sizes = [outcome.size for outcome in outcomes if outcome.size is not None]
    edits = sum(outcome.edits for outcome in outcomes)
    warnings: Counter[str] = Counter()
    for outcome in outcomes:
        warnings.update(outcome.warnings)
    return Score(
        value=float(harmonic_mean(list(metrics.values()))) if metrics else 0.0,
        metrics=metrics,
        cases=max((len(scores) for scores in pooled.values()), default=0),
        size=fmean(sizes) if sizes else None,
        seconds=sum(outcome.seconds for outcome in outcomes) / edits if edits else 0.0,
        warnings=dict(sorted(warnings.items())),
    )
