"""What is known of a metric beside its numbers: its title, what it means, and whether high or low is good."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from kedit_core.evaluation import METRICS, PROTOCOLS
from kedit_core.evaluation.report import format_value

CORE = tuple(METRICS)
FREE, FORCED = "gen_free", "tf_token"
GAP = "gap"
GAP_EXPLAINED = (
    "Teacher-forced less free generation, in points: how much of the score is owed to showing the model its answer."
)
SHORT: Mapping[str, str] = {
    "gen_free": "free",
    "gen_wild": "free, WILD",
    "gen_len": "length given",
    "tf_token": "forced",
    "tf_exact": "forced, whole",
}
_PROTOCOL_SUMMARY = {protocol.name: protocol.summary for protocol in PROTOCOLS}
_TITLES: Mapping[str, str] = {
    "efficiency.seconds": "s / edit",
    "efficiency.setup_seconds": "setup / edit",
    "efficiency.peak_memory": "peak memory",
    "efficiency.patch_size": "patch / edit",
}


@frozen(kw_only=True)
class MetricFacts:
    """One metric as people meet it.

    Attributes:
        name: the key in evaluations, ``gen_free.reliability``.
        group, leaf: its two halves; for the core's metrics the group is the protocol.
        title: heading of its column.
        summary: one sentence, empty where nobody said one.
        better: ``"higher"``, ``"lower"``, or None where neither is.
        unit: of its values.
    """

    name: str
    group: str
    leaf: str
    title: str
    summary: str
    better: str | None
    unit: str

    @property
    def is_core(self) -> bool:
        """Whether it is one of the core's four, under some protocol."""
        return self.leaf in METRICS

    def text(self, value: float | None) -> str:
        """A value as people read it."""
        return format_value(value, self.unit)

    @property
    def explained(self) -> str:
        """What it means, and which end is good."""
        says = f"{self.summary[0].upper()}{self.summary[1:]}." if self.summary else ""
        way = {"higher": "Higher is better.", "lower": "Lower is better."}.get(self.better or "", "")
        return f"{says} {way}".strip()


def facts_of(name: str, unit: str, told: Mapping[str, Mapping[str, Any]]) -> MetricFacts:
    """What is known of a metric: what the bench file says its plugin declared; of the core's, what the core says."""
    group, _, leaf = name.partition(".")
    leaf = leaf or group
    said = told.get(name, {})
    better = said.get("better", "higher" if leaf in METRICS else None)
    return MetricFacts(
        name=name,
        group=group,
        leaf=leaf,
        title=SHORT.get(group, group) if leaf in METRICS else _TITLES.get(name, leaf.replace("_", " ")),
        summary=str(said.get("summary") or _summary(group, leaf)),
        better=better if better in ("higher", "lower") else None,
        unit=unit,
    )


def protocol_rank(group: str) -> int:
    """Order of protocols in tables: as the core lists them with the two headline ones first; unknown ones last."""
    order = [FREE, FORCED, *(protocol.name for protocol in PROTOCOLS if protocol.name not in (FREE, FORCED))]
    return order.index(group) if group in order else len(order)


def _summary(group: str, leaf: str) -> str:
    if leaf not in METRICS:
        return ""
    how = _PROTOCOL_SUMMARY.get(group, "")
    return f"{METRICS[leaf]} ({how})" if how else METRICS[leaf]
