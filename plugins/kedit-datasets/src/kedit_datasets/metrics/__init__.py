"""The datasets' own metrics, each measured on request (README)."""

from __future__ import annotations


def plugins() -> list[object]:
    """Fresh plugin objects for one Editor."""
    from kedit_datasets.metrics.convsent import ConvSentMetrics
    from kedit_datasets.metrics.counterfact import CounterFactMetrics
    from kedit_datasets.metrics.errors import ErrorMetrics
    from kedit_datasets.metrics.essence import EssenceMetrics
    from kedit_datasets.metrics.fluency import FluencyMetrics
    from kedit_datasets.metrics.locality import GOLD, QAEDIT, LocalityMetrics
    from kedit_datasets.metrics.multihop import MultiHopMetrics
    from kedit_datasets.metrics.perplexity import PerplexityMetrics
    from kedit_datasets.metrics.reference import ReferenceMetrics
    from kedit_datasets.metrics.ripple import RippleMetrics
    from kedit_datasets.metrics.sanitation import SanitationMetrics

    return [
        FluencyMetrics(),
        CounterFactMetrics(),
        ReferenceMetrics(),
        EssenceMetrics(),
        PerplexityMetrics(),
        ErrorMetrics(),
        LocalityMetrics(GOLD),
        LocalityMetrics(QAEDIT),
        ConvSentMetrics(),
        SanitationMetrics(),
        MultiHopMetrics(),
        RippleMetrics(),
    ]
