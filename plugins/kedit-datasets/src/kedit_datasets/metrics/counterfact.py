"""Group ``counterfact``: is the new answer likelier than the true one, and the true one where it should be?

Definitions: Meng et al. 2022 (ROME, section 3.3) and 2023 (MEMIT); shares here, x100 in their tables. What
they call EM is a difference of probabilities and named magnitude here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from statistics import harmonic_mean
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from kedit_core.contract import MetricInfo, MetricResult, hookimpl
from kedit_core.evaluation import case_of, metric_result
from kedit_core.requests import EditRequest
from kedit_datasets.metrics.cases import Scores, tag_of
from kedit_datasets.metrics.declaring import on_request

if TYPE_CHECKING:
    from kedit_core.editing import EditContext
    from kedit_core.evaluation import Answers

GROUP = "counterfact"
NEIGHBORHOOD = "neighborhood"
KINDS: Mapping[str, str] = {
    "efficacy": "edit prompts",
    "paraphrase": "rephrases",
    NEIGHBORHOOD: "prompts about other subjects of which the old answer is true",
}
_MODELS = ("base", "edited")


@frozen(kw_only=True)
class _Item:
    """One prompt with the two answers that are compared; ``wanted`` is the one that should be likelier."""

    case: str
    request: int
    kind: str
    prompt: str
    new: str
    true: str

    @property
    def wanted(self) -> str:
        return self.true if self.kind == NEIGHBORHOOD else self.new

    @property
    def other(self) -> str:
        return self.new if self.kind == NEIGHBORHOOD else self.true


@frozen(kw_only=True)
class _Reading:
    """How one model reads an item: mean negative log-probability per token, and whether each token is the argmax."""

    wanted: float
    other: float
    exact: bool

    @property
    def measured(self) -> Mapping[str, float]:
        """What is averaged: the inequality, the difference of probabilities, and all tokens being the argmax."""
        return {
            "score": float(self.other > self.wanted),
            "magnitude": exp(-self.wanted) - exp(-self.other),
            "accuracy": float(self.exact),
        }


@frozen(eq=False)
class _Table:
    """Scores by kind, measure and model."""

    scores: dict[tuple[str, str, str], Scores] = field(factory=dict)

    def of(self, kind: str, measure: str, model: str) -> Scores:
        return self.scores.setdefault((kind, measure, model), Scores())


class CounterFactMetrics:
    """The plugin: scores, magnitudes and accuracies of the three kinds of prompts, and the score S of them together.

    The new answer is ``target_new`` and the true one ``ground_truth``, in neighbourhood prompts too; prompts of
    requests without it are left out and counted. The base model's numbers stand in ``parts`` as ``base``.
    """

    @hookimpl
    def register_metrics(self) -> Sequence[MetricInfo]:
        """Nine metrics, the score S, and the base's."""
        told: dict[str, str] = {}
        for kind, prompts in KINDS.items():
            wanted, other = ("true", "new") if kind == NEIGHBORHOOD else ("new", "true")
            told[f"{kind}_score"] = f"the {wanted} answer is likelier than the {other} one ({prompts})"
            told[f"{kind}_magnitude"] = f"probability of the {wanted} answer less that of the {other} one ({prompts})"
            told[f"{kind}_accuracy"] = f"all tokens of the {wanted} answer are the argmax ({prompts})"
        told["score"] = "harmonic mean of the three scores' means"
        told["base_score"] = "the same of the unedited model"
        return on_request(GROUP, told, neither=("base_score",))

    @hookimpl
    def read_ahead(self, context: EditContext, requests: Sequence[EditRequest], answers: Answers) -> None:
        """Ask for both answers after every prompt."""
        if context.wants(GROUP):
            answers.target_logprobs(_pairs(_items(requests)))

    @hookimpl
    def evaluate(
        self, context: EditContext, requests: Sequence[EditRequest], base: Answers, edited: Answers
    ) -> Mapping[str, MetricResult]:
        """All metrics of the group; one without prompts has the value None."""
        if not context.wants(GROUP):
            return {}
        items = _items(requests)
        readings = {"base": _read(base, items), "edited": _read(edited, items)}
        table = _Table()
        for model, of_model in readings.items():
            for item, reading in zip(items, of_model, strict=True):
                for measure, value in reading.measured.items():
                    table.of(item.kind, measure, model).add(item.case, item.request, value)
        compared = tag_of(context, requests, mode="nll", answer_source="new-against-true")
        exact = tag_of(context, requests, mode="tf_exact", answer_source="argmax")
        results: dict[str, MetricResult] = {}
        for kind in KINDS:
            for measure in ("score", "magnitude", "accuracy"):
                results[f"{GROUP}.{kind}_{measure}"] = metric_result(
                    table.of(kind, measure, "edited").means(),
                    tag=exact if measure == "accuracy" else compared,
                    case_parts={"base": table.of(kind, measure, "base").means()},
                    outputs=_outputs(items, readings, kind) if measure == "score" else (),
                    statistics=("std",),
                    left_out=_left_out(requests, kind),
                )
        results[f"{GROUP}.score"] = _together(table, "edited", compared)
        results[f"{GROUP}.base_score"] = _together(table, "base", compared)
        return results


def _together(table: _Table, model: str, tag: str) -> MetricResult:
    """The score S: of means over cases, so its own cases (those that have all three scores) do not average to it."""
    parts = {kind: table.of(kind, "score", model).means() for kind in KINDS}
    whole = [case for case in parts["efficacy"] if all(case in scores for scores in parts.values())]
    return metric_result(
        {case: float(harmonic_mean([scores[case] for scores in parts.values()])) for case in whole},
        tag=tag,
        case_parts=parts,
        statistics=("harmonic_mean",),
    )


def _prompts(request: EditRequest) -> Mapping[str, Sequence[str]]:
    return {
        "efficacy": (request.prompt,),
        "paraphrase": request.rephrase_prompts,
        NEIGHBORHOOD: tuple(probe.prompt for probe in request.locality.get(NEIGHBORHOOD, ())),
    }


def _items(requests: Sequence[EditRequest]) -> list[_Item]:
    return [
        _Item(
            case=case_of(request),
            request=index,
            kind=kind,
            prompt=prompt,
            new=request.target_new,
            true=request.ground_truth,
        )
        for index, request in enumerate(requests)
        if request.ground_truth is not None
        for kind, prompts in _prompts(request).items()
        for prompt in prompts
    ]


def _left_out(requests: Sequence[EditRequest], kind: str) -> int:
    return sum(len(_prompts(request)[kind]) for request in requests if request.ground_truth is None)


def _pairs(items: Sequence[_Item]) -> list[tuple[str, str]]:
    return [pair for item in items for pair in ((item.prompt, item.wanted), (item.prompt, item.other))]


def _read(answers: Answers, items: Sequence[_Item]) -> list[_Reading]:
    pairs = _pairs(items)
    nll = [-float(logprobs.double().mean()) for logprobs in answers.target_logprobs(pairs)]
    tokens = answers.target_tokens(pairs)
    return [
        _Reading(wanted=nll[i], other=nll[i + 1], exact=tokens[i].predicted == tokens[i].target)
        for i in range(0, len(pairs), 2)
    ]


def _outputs(items: Sequence[_Item], readings: Mapping[str, Sequence[_Reading]], kind: str) -> list[dict[str, Any]]:
    """What was read for each prompt of a kind: both answers' negative log-probabilities per token, of both models."""
    return [
        {
            "case": item.case,
            "kind": item.kind,
            "part": None,
            "prompt": item.prompt,
            "expected": [item.wanted],
            "instead_of": item.other,
            "score": readings["edited"][i].measured["score"],
            "nll": {
                model: {"expected": readings[model][i].wanted, "instead_of": readings[model][i].other}
                for model in _MODELS
            },
        }
        for i, item in enumerate(items)
        if item.kind == kind
    ]
