"""Evaluation: what a model answers, how answers are judged, and the core's metrics (see docs/evaluation.md).

Importing this package imports no torch; ``Answers`` does when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kedit_core.evaluation.aggregate import metric_result
from kedit_core.evaluation.efficiency import EfficiencyMetrics
from kedit_core.evaluation.latency import LatencyMetrics
from kedit_core.evaluation.manifest import requests_digest, run_manifest
from kedit_core.evaluation.metrics import METRICS, CoreMetrics, Item, case_of, core_metrics, items_of, prefetch, way_of
from kedit_core.evaluation.protocols import (
    GEN_FREE,
    GEN_LEN,
    GEN_WILD,
    PROTOCOLS,
    TF_EXACT,
    TF_TOKEN,
    BoundedGeneration,
    FreeGeneration,
    Judgement,
    Protocol,
    Reading,
    TeacherForced,
    resolve_metrics,
    resolve_protocol,
    resolve_protocols,
)
from kedit_core.evaluation.questions import Continuation, Questions, TargetTokens
from kedit_core.evaluation.report import Evaluation, combine
from kedit_core.evaluation.tags import Tag
from kedit_core.evaluation.text import SENTENCE, WILD, StopRule, contains, exact_match, normalise, word_f1

if TYPE_CHECKING:
    from kedit_core.evaluation.answers import Answers
    from kedit_core.evaluation.reading_together import read_together

__all__ = [
    "GEN_FREE",
    "GEN_LEN",
    "GEN_WILD",
    "METRICS",
    "PROTOCOLS",
    "SENTENCE",
    "TF_EXACT",
    "TF_TOKEN",
    "WILD",
    "Answers",
    "BoundedGeneration",
    "Continuation",
    "CoreMetrics",
    "EfficiencyMetrics",
    "Evaluation",
    "FreeGeneration",
    "Item",
    "Judgement",
    "LatencyMetrics",
    "Protocol",
    "Questions",
    "Reading",
    "StopRule",
    "Tag",
    "TargetTokens",
    "TeacherForced",
    "case_of",
    "combine",
    "contains",
    "core_metrics",
    "exact_match",
    "items_of",
    "metric_result",
    "normalise",
    "plugin",
    "prefetch",
    "read_together",
    "requests_digest",
    "resolve_metrics",
    "resolve_protocol",
    "resolve_protocols",
    "run_manifest",
    "way_of",
    "word_f1",
]


def plugin() -> list[object]:
    """The entry point ``core-evaluation``: fresh plugin objects for one Editor."""
    return [CoreMetrics(), EfficiencyMetrics(), LatencyMetrics()]


def __getattr__(name: str) -> Any:
    if name == "Answers":
        return import_module("kedit_core.evaluation.answers").Answers
    if name == "read_together":
        return import_module("kedit_core.evaluation.reading_together").read_together
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
