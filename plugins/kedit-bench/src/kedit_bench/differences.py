"""The result of a comparison: differences, cells that were paired, and what was refused."""

from __future__ import annotations

from typing import Any

import attrs
from attrs import frozen

FORMAT, KIND = 1, "kedit-bench-comparison"


@frozen(kw_only=True)
class Difference:
    """One metric, or one of its sub-keys, of B less that of A, over the cases that both have.

    Attributes:
        metric, part: which; ``part`` is None for the metric itself.
        better: ``"higher"``, ``"lower"``, or None where neither is.
        tag: of A's result (B's differs in the number of edits at most, and that for cases edited alone only).
        a, b: means over the paired cases.
        difference: ``b - a``.
        low, high: ends of the interval of the difference; None with fewer than two pairs, and for costs that the edits
            of a round share, which were measured once and not once a case.
        p: of the sign-flip test, not corrected for how many metrics are looked at; None where there is no interval.
        level: of the interval.
        pairs: cases that both have.
        only_a, only_b: cases that one has alone; they are not looked at.
    """

    metric: str
    part: str | None
    unit: str
    better: str | None
    tag: str
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    level: float
    pairs: int
    only_a: int
    only_b: int

    @property
    def verdict(self) -> str | None:
        """``better`` or ``worse`` (B than A), ``higher`` or ``lower`` where neither is good; None if it may be chance.

        Interval and test must agree: with few cases the interval alone is too narrow.
        """
        if self.low is None or self.high is None or self.p is None:
            return None
        if self.low <= 0 <= self.high or self.p > 1 - self.level:
            return None
        grows = self.difference > 0
        if self.better is None:
            return "higher" if grows else "lower"
        return "better" if grows == (self.better == "higher") else "worse"


@frozen(kw_only=True)
class Refusal:
    """A metric that was not compared, and why, as a sentence."""

    metric: str
    reason: str


@frozen(kw_only=True)
class Pair:
    """Two cells that were held against each other."""

    model: str
    dataset: str
    scenario: str
    label_a: str
    label_b: str
    differences: tuple[Difference, ...]
    refused: tuple[Refusal, ...]

    @property
    def label(self) -> str:
        """The method, or both."""
        return self.label_a if self.label_a == self.label_b else f"{self.label_a} → {self.label_b}"

    def part_called(self, found: Difference) -> str:
        """What a sub-key's row is called: by itself under its metric's row, else with the metric."""
        has_row = any(each.metric == found.metric and each.part is None for each in self.differences)
        return str(found.part) if has_row else f"{found.metric}: {found.part}"

    @property
    def reasons(self) -> dict[str, list[str]]:
        """What was refused, by reason."""
        found: dict[str, list[str]] = {}
        for refusal in self.refused:
            found.setdefault(refusal.reason, []).append(refusal.metric)
        return found


@frozen(kw_only=True)
class Comparison:
    """All of it. ``unmatched`` are sentences on cells that had no partner or failed."""

    pairs: tuple[Pair, ...]
    unmatched: tuple[str, ...]
    samples: int
    seed: int
    level: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; each difference has its ``verdict``."""
        pairs = [
            {**attrs.asdict(pair), "differences": [{**attrs.asdict(d), "verdict": d.verdict} for d in pair.differences]}
            for pair in self.pairs
        ]
        return {"format": FORMAT, "kind": KIND, **attrs.asdict(self), "pairs": pairs}
