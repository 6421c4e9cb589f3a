"""The core's metrics: reliability, generalization, locality, portability, under every protocol asked for.

Averages (specs: evaluation, section 1): mean over the prompts of a sub-key, mean over the sub-keys a request has, mean
over the requests of a case, mean over the cases that have any.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from attrs import frozen

from kedit_core.contract import MetricInfo, MetricResult, hookimpl
from kedit_core.evaluation.aggregate import metric_result
from kedit_core.evaluation.protocols import PROTOCOLS, Judgement, Protocol, Reading, resolve_protocols
from kedit_core.requests import EditRequest, Probe

if TYPE_CHECKING:
    from kedit_core.editing import EditContext
    from kedit_core.evaluation.answers import Answers

METRICS: Mapping[str, str] = {
    "reliability": "the edit prompt is answered with the new target",
    "generalization": "rephrases are answered with the new target",
    "locality": "unrelated prompts are answered as by the unedited model",
    "portability": "what follows from the edit is answered accordingly",
}


@frozen(kw_only=True)
class Item:
    """One probe and what it is for.

    Attributes:
        case: the case its scores belong to.
        request: index of its request.
        metric: ``reliability``, ``generalization``, ``locality`` or ``portability``.
        part: name of the sub-key, None where there are none.
    """

    case: str
    request: int
    metric: str
    part: str | None
    probe: Probe


def case_of(request: EditRequest) -> str:
    """The case a request's scores belong to: its case id, or its own id when it has none."""
    return request.case_id if request.case_id is not None else request.id


def items_of(requests: Sequence[EditRequest]) -> Iterator[Item]:
    """Every probe of every request, the edit prompt itself among them."""
    for index, request in enumerate(requests):
        answers = (request.target_new, *request.aliases)
        probes: list[tuple[str, str | None, Probe]] = [
            ("reliability", None, Probe(prompt=request.prompt, answers=answers)),
            *(("generalization", None, Probe(prompt=text, answers=answers)) for text in request.rephrase_prompts),
            *(("locality", part, probe) for part, listed in request.locality.items() for probe in listed),
            *(("portability", part, probe) for part, listed in request.portability.items() for probe in listed),
        ]
        for metric, part, probe in probes:
            yield Item(case=case_of(request), request=index, metric=metric, part=part, probe=probe)


def prefetch(answers: Answers, requests: Sequence[EditRequest], protocols: Iterable[Protocol | str]) -> None:
    """Read all that the metrics will ask, of all requests, in few batches, no prompt twice.

    Worth calling with the base's answers before each case is edited alone.
    """
    probes = [item.probe for item in items_of(requests)]
    with answers.at_once():
        for protocol in resolve_protocols(protocols):
            protocol.read(answers, probes)


def core_metrics(
    requests: Sequence[EditRequest],
    base: Answers,
    edited: Answers,
    *,
    protocols: Iterable[Protocol | str],
    scenario: str,
    way: str | None,
) -> dict[str, MetricResult]:
    """``"{protocol}.{metric}"`` -> result, for every protocol and metric; one without probes has the value None."""
    items = list(items_of(requests))
    results: dict[str, MetricResult] = {}
    resolved = resolve_protocols(protocols)
    for answers in (base, edited):
        prefetch(answers, requests, resolved)
    for protocol in resolved:
        before = protocol.read(base, [item.probe for item in items])
        after = protocol.read(edited, [item.probe for item in items])
        judged = [_judge(protocol, *row) for row in zip(items, before, after, strict=True)]
        tag = protocol.tag(scenario, len(requests), way)
        for metric in METRICS:
            rows = [row for row in judged if row.item.metric == metric]
            results[f"{protocol.name}.{metric}"] = _result(rows, tag)
    return results


@frozen(kw_only=True)
class _Judged:
    """An item with what was read and how it was judged; no judgement when this protocol cannot judge it."""

    item: Item
    base: Reading | None
    edited: Reading | None
    judgement: Judgement | None


def _judge(protocol: Protocol, item: Item, base: Reading | None, edited: Reading | None) -> _Judged:
    judgement: Judgement | None = None
    if edited is not None and item.metric != "locality":
        judgement = protocol.success(item.probe, edited)
    elif edited is not None and base is not None:
        judgement = protocol.agreement(base, edited)
    return _Judged(item=item, base=base, edited=edited, judgement=judgement)


def _result(rows: Sequence[_Judged], tag: str) -> MetricResult:
    prompts: dict[tuple[str, int], dict[str | None, list[float]]] = {}  # (case, request) -> sub-key -> scores
    for row in rows:
        if row.judgement is not None:
            of_request = prompts.setdefault((row.item.case, row.item.request), {})
            of_request.setdefault(row.item.part, []).append(row.judgement.score)
    wholes: dict[str, list[float]] = {}
    parts: dict[str, dict[str, list[float]]] = {}
    for (case, _), by_part in prompts.items():
        means = {part: fmean(scores) for part, scores in by_part.items()}
        wholes.setdefault(case, []).append(fmean(means.values()))
        for part, mean in means.items():
            if part is not None:
                parts.setdefault(part, {}).setdefault(case, []).append(mean)
    return metric_result(
        {case: fmean(scores) for case, scores in wholes.items()},
        tag=tag,
        case_parts={part: {case: fmean(s) for case, s in cases.items()} for part, cases in parts.items()},
        outputs=[_output(row) for row in rows],
        left_out=sum(row.judgement is None for row in rows),
    )


def _output(row: _Judged) -> dict[str, Any]:
    """What was read for one probe, JSON-able, for people who want to look."""
    judgement, base, edited = row.judgement, row.base, row.edited
    output: dict[str, Any] = {
        "case": row.item.case,
        "kind": row.item.metric,
        "part": row.item.part,
        "prompt": row.item.probe.prompt,
        "expected": list(row.item.probe.answers),
        "base": base.text if base else None,
        "edited": edited.text if edited else None,
        "score": judgement.score if judgement else None,
        "contain": judgement.contain if judgement else None,
        "f1": judgement.f1 if judgement else None,
    }
    if base and edited and edited.target:
        output["tokens"] = {"target": [*edited.target], "base": [*base.predicted], "edited": [*edited.predicted]}
    return output


def way_of(context: EditContext) -> str | None:
    """How the patches are on the model: ``merged``, ``attached``, both (``attached-merged``), or None without any."""
    return "-".join(sorted({entry.way for entry in context.stack.patches})) or None


class CoreMetrics:
    """The plugin: reads ``context.protocols``, ``context.scenario`` and ``context.way``."""

    @hookimpl
    def register_metrics(self) -> Sequence[MetricInfo]:
        return [
            MetricInfo(name=f"{protocol.name}.{metric}", summary=f"{summary} ({protocol.summary})", better="higher")
            for protocol in PROTOCOLS
            for metric, summary in METRICS.items()
        ]

    @hookimpl
    def read_ahead(self, context: EditContext, requests: Sequence[EditRequest], answers: Answers) -> None:
        prefetch(answers, requests, context.protocols)

    @hookimpl
    def evaluate(
        self, context: EditContext, requests: Sequence[EditRequest], base: Answers, edited: Answers
    ) -> Mapping[str, MetricResult]:
        return core_metrics(
            requests, base, edited, protocols=context.protocols, scenario=context.scenario, way=way_of(context)
        )
