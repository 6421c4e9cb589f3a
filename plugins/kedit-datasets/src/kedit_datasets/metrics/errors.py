"""Group ``errors``: how many answers are wrong, and in which way (see :mod:`kedit_datasets.metrics.failures`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from kedit_core.contract import MetricInfo, MetricResult, hookimpl
from kedit_core.evaluation import Item, contains, exact_match, items_of, metric_result, normalise
from kedit_core.requests import EditRequest
from kedit_datasets.metrics.cases import Scores, tag_of
from kedit_datasets.metrics.declaring import on_request
from kedit_datasets.metrics.failures import CLASSES, IRRELEVANT, classify
from kedit_datasets.metrics.sampling import END_OF_TEXT, special_tokens
from kedit_datasets.metrics.words import without

if TYPE_CHECKING:
    from kedit_core.editing import EditContext
    from kedit_core.evaluation import Answers

GROUP = "errors"
FAILED, OVER_LONG, UNCHANGED = "failed", "over_long", "unchanged"
OF_ALL: Mapping[str, str] = {
    FAILED: "share of answers that are wrong",
    OVER_LONG: "share of answers that are right, with other words around (these are no failures)",
}
OF_FAILURES: Mapping[str, str] = {
    **{name: f"share of the failures where {what}" for name, what in CLASSES.items()},
    UNCHANGED: "share of the failures that are irrelevant and still the base's answer",
}
EXAMPLES = 20


@frozen(kw_only=True)
class _Judged:
    """One answer.

    Attributes:
        outcome: the class of a wrong one, :data:`OVER_LONG`, or None for a right one.
        unchanged: it is irrelevant, and what the base says.
        draw: a number in 0..1 that follows from the seed, the case and the prompt, for choosing examples.
    """

    item: Item
    base: str
    edited: str
    outcome: str | None
    unchanged: bool
    draw: float

    def counts_as(self, name: str) -> bool:
        """Whether it counts for a metric of this group."""
        if name == FAILED:
            return self.outcome in CLASSES
        return self.unchanged if name == UNCHANGED else self.outcome == name

    @property
    def output(self) -> dict[str, Any]:
        """As it stands among a metric's outputs."""
        return {
            "case": self.item.case,
            "kind": self.item.metric,
            "part": self.item.part,
            "prompt": self.item.probe.prompt,
            "expected": list(self.item.probe.answers),
            "base": self.base,
            "edited": self.edited,
            "class": self.outcome,
            "unchanged": self.unchanged,
            "draw": self.draw,
        }


class ErrorMetrics:
    """The plugin: sorts the wrong answers to edit prompts, rephrases and portability probes.

    Answers are read as protocol ``gen_free`` reads them. One that contains an accepted answer is no failure but
    ``over_long``. Shares of the classes are of a case's failures, averaged over the cases that have any, and add up to
    1; ``errors.count`` has the totals. The old answer is ``ground_truth`` (not for portability) and the base's own.
    Outputs are examples: at most 20 of each class in one evaluation, drawn by ``context.seed``; see :func:`examples`.
    """

    @hookimpl
    def register_metrics(self) -> Sequence[MetricInfo]:
        """The classes, what stands beside them, and the counts."""
        told = {**OF_ALL, **OF_FAILURES, "count": "number of failures, in all and of each class"}
        # shares among failures: a high one says nothing of how many there are
        return on_request(GROUP, told, lower=(FAILED, OVER_LONG, "count"), neither=OF_FAILURES)

    @hookimpl
    def read_ahead(self, context: EditContext, requests: Sequence[EditRequest], answers: Answers) -> None:
        """Ask every prompt that is judged."""
        if context.wants(GROUP):
            answers.generate([item.probe.prompt for item in _items(requests) if item.probe.answers])

    @hookimpl
    def evaluate(
        self, context: EditContext, requests: Sequence[EditRequest], base: Answers, edited: Answers
    ) -> Mapping[str, MetricResult]:
        """Shares, counts and examples; a share of failures is None where there is none."""
        if not context.wants(GROUP):
            return {}
        items = _items(requests)
        judged = _judge(context, requests, [item for item in items if item.probe.answers], base, edited)
        failures = [one for one in judged if one.counts_as(FAILED)]
        tag = tag_of(context, requests, mode="gen_free", answer_source="EM")
        left_out = sum(not item.probe.answers for item in items)
        results = {f"{GROUP}.{name}": _share(judged, name, tag, left_out) for name in OF_ALL}
        results |= {f"{GROUP}.{name}": _share(failures, name, tag, left_out) for name in OF_FAILURES}
        results[f"{GROUP}.count"] = metric_result(
            _scores(judged, FAILED).sums(),
            tag=tag,
            case_parts={name: _scores(judged, name).sums() for name in OF_FAILURES},
            unit="outputs",
            statistics=("total",),
            left_out=left_out,
        )
        return results


def examples(result: MetricResult, count: int = EXAMPLES) -> list[Mapping[str, Any]]:
    """Examples out of a result's outputs, drawn at random: the same ones whether its cases were evaluated apart or not.

    For a result that was combined from many cases, each of which brought its own.
    """
    # every output has drawn its number by itself, so the lowest of each case include the lowest of all
    return sorted(result.outputs, key=lambda output: float(output["draw"]))[:count]


def _items(requests: Sequence[EditRequest]) -> list[Item]:
    return [item for item in items_of(requests) if item.metric != "locality"]


def _judge(
    context: EditContext, requests: Sequence[EditRequest], items: Sequence[Item], base: Answers, edited: Answers
) -> list[_Judged]:
    prompts = [item.probe.prompt for item in items]
    markers = (END_OF_TEXT, *special_tokens(context))
    judged = []
    for item, before, after in zip(items, base.generate(prompts), edited.generate(prompts), strict=True):
        old = [before, *_truth(requests[item.request], item)]
        outcome = _outcome(without(after, markers), item, old)
        same = outcome == IRRELEVANT and normalise(before) == normalise(after)
        judged.append(
            _Judged(
                item=item,
                base=before,
                edited=after,
                outcome=outcome,
                unchanged=same,
                draw=_draw(context.seed, item),
            )
        )
    return judged


def _outcome(output: str, item: Item, old: Iterable[str]) -> str | None:
    answers = item.probe.answers
    if exact_match(output, answers):
        return None
    return OVER_LONG if contains(output, answers) else classify(output, answers, old, item.probe.prompt)


def _truth(request: EditRequest, item: Item) -> list[str]:
    """The fact's old answer, for prompts that ask for the fact."""
    return [request.ground_truth] if request.ground_truth is not None and item.metric != "portability" else []


def _draw(seed: int, item: Item) -> float:
    text = f"{seed}:{item.case}:{item.metric}:{item.probe.prompt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _scores(rows: Iterable[_Judged], name: str) -> Scores:
    scores = Scores()
    for one in rows:
        scores.add(one.item.case, one.item.request, float(one.counts_as(name)))
    return scores


def _share(rows: Sequence[_Judged], name: str, tag: str, left_out: int) -> MetricResult:
    """Share of the rows that count as ``name``, by kind of prompt in the parts, with examples."""
    kinds = dict.fromkeys(one.item.metric for one in rows)
    result = metric_result(
        _scores(rows, name).means(),
        tag=tag,
        case_parts={kind: _scores([one for one in rows if one.item.metric == kind], name).means() for kind in kinds},
        outputs=[one.output for one in rows if one.counts_as(name)],
        left_out=left_out,
    )
    return evolve(result, outputs=tuple(examples(result)))
