"""Groups ``gold`` and ``qaedit``: two other readings of locality that published numbers stand on.

The core's locality compares the edited model with the unedited one, over all probes. MEMIT's numbers on ZsRE (Meng et
al. 2023 and their code; protocol ``tf_token``) compare with the published answers; WILD's on QAEdit (Yang et al. 2025,
arXiv 2502.11177, and their code) look at the first probe of a record only. Both are measured under each protocol of the
run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import define, field, frozen

from kedit_core.contract import MetricInfo, MetricResult, hookimpl
from kedit_core.evaluation import PROTOCOLS, Item, Judgement, Protocol, Reading, items_of, metric_result
from kedit_core.requests import EditRequest
from kedit_datasets.metrics.cases import Scores, tag_of
from kedit_datasets.metrics.declaring import on_request

if TYPE_CHECKING:
    from kedit_core.editing import EditContext
    from kedit_core.evaluation import Answers

FIRST = "first"
"""What QAEdit's reader marks a record's first probe with, in its ``meta``."""

Read: TypeAlias = Reading | None
Judge: TypeAlias = Callable[[Protocol, Item, Read, Read], Judgement | None]


@frozen(kw_only=True)
class Kind:
    """One of the two readings.

    Attributes:
        name: last part of its metrics' names.
        chosen: whether a locality probe counts.
        judge: (protocol, item, the base's reading, the edited model's) -> its judgement, None where there is none.
        of_base: (protocol, item, the base's reading) -> the base's own score, to stand in ``parts`` as ``base``.
        source: what it is compared with, as it stands in the tag, before what the protocol says.
    """

    group: str
    name: str
    summary: str
    chosen: Callable[[Item], bool]
    judge: Judge
    of_base: Callable[[Protocol, Item, Read], Judgement | None] | None
    source: str


def _success(protocol: Protocol, item: Item, reading: Read) -> Judgement | None:
    return None if reading is None else protocol.success(item.probe, reading)


def _agreement(protocol: Protocol, item: Item, base: Read, edited: Read) -> Judgement | None:
    return None if base is None or edited is None else protocol.agreement(base, edited)


GOLD = Kind(
    group="gold",
    name="locality",
    summary="unrelated prompts are answered with their published answers",
    chosen=lambda item: True,
    judge=lambda protocol, item, base, edited: _success(protocol, item, edited),
    of_base=_success,
    source="gold",
)
QAEDIT = Kind(
    group="qaedit",
    name="first_locality",
    summary="the first unrelated prompt of each record is answered as by the unedited model",
    chosen=lambda item: bool(item.probe.meta.get(FIRST)),
    judge=_agreement,
    of_base=None,
    source="first",
)


@define(eq=False)
class LocalityMetrics:
    """The plugin of one kind. Averages are those of the core's locality, over the probes that count."""

    kind: Kind

    @hookimpl
    def register_metrics(self) -> Sequence[MetricInfo]:
        """One metric for each of the core's protocols."""
        told = {f"{each.name}_{self.kind.name}": f"{self.kind.summary} ({each.summary})" for each in PROTOCOLS}
        return on_request(self.kind.group, told)

    @hookimpl
    def read_ahead(self, context: EditContext, requests: Sequence[EditRequest], answers: Answers) -> None:
        """Ask every probe that counts."""
        if context.wants(self.kind.group):
            probes = [item.probe for item in self._items(requests)]
            for protocol in context.protocols:
                protocol.read(answers, probes)

    @hookimpl
    def evaluate(
        self, context: EditContext, requests: Sequence[EditRequest], base: Answers, edited: Answers
    ) -> Mapping[str, MetricResult]:
        """A metric for each protocol of the run, or none where no probe counts."""
        items = list(self._items(requests)) if context.wants(self.kind.group) else []
        if not items:
            return {}
        asked = [requests[index] for index in dict.fromkeys(item.request for item in items)]
        return {
            self._name(protocol): self._measured(context, asked, items, protocol, base, edited)
            for protocol in context.protocols
        }

    def _name(self, protocol: Protocol) -> str:
        return f"{self.kind.group}.{protocol.name}_{self.kind.name}"

    def _items(self, requests: Sequence[EditRequest]) -> Iterator[Item]:
        return (item for item in items_of(requests) if item.metric == "locality" and self.kind.chosen(item))

    def _measured(
        self,
        context: EditContext,
        requests: Sequence[EditRequest],
        items: Sequence[Item],
        protocol: Protocol,
        base: Answers,
        edited: Answers,
    ) -> MetricResult:
        probes = [item.probe for item in items]
        found, before = _Means(), _Means()
        outputs: list[dict[str, Any]] = []
        for item, old, new in zip(items, protocol.read(base, probes), protocol.read(edited, probes), strict=True):
            judgement = self.kind.judge(protocol, item, old, new)
            outputs.append({
                "case": item.case, "kind": self.kind.group, "part": item.part, "prompt": item.probe.prompt,
                "expected": list(item.probe.answers), "base": old.text if old else None,
                "edited": new.text if new else None, "score": judgement.score if judgement else None,
            })  # fmt: skip
            found.add(item, judgement)
            if self.kind.of_base is not None:
                before.add(item, self.kind.of_base(protocol, item, old))
        return metric_result(
            found.whole(),
            tag=tag_of(
                context,
                requests,
                mode=protocol.mode,
                surroundings=protocol.context,
                answer_source=f"{self.kind.source}_{protocol.answer_source}",
            ),
            case_parts={**found.parts(), **({"base": before.whole()} if self.kind.of_base else {})},
            outputs=outputs,
            left_out=sum(output["score"] is None for output in outputs),
        )


@define(eq=False)
class _Means:
    """Scores averaged as the core does: a sub-key's prompts, a request's sub-keys, a case's requests."""

    _scores: dict[tuple[str, int], dict[str, list[float]]] = field(factory=dict)

    def add(self, item: Item, judgement: Judgement | None) -> None:
        if judgement is not None:
            of_request = self._scores.setdefault((item.case, item.request), {})
            of_request.setdefault(item.part or "", []).append(judgement.score)

    def whole(self) -> dict[str, float]:
        scores = Scores()
        for (case, request), parts in self._scores.items():
            scores.add(case, request, fmean(fmean(each) for each in parts.values()))
        return scores.means()

    def parts(self) -> dict[str, dict[str, float]]:
        by_part: dict[str, Scores] = {}
        for (case, request), parts in self._scores.items():
            for part, each in parts.items():
                by_part.setdefault(part, Scores()).add(case, request, fmean(each))
        return {part: scores.means() for part, scores in by_part.items()}
