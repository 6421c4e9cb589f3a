"""Group ``perplexity``: how surprised is the edited model by the new target?

For targets that are whole sentences (WikiBio), which no greedy text equals; reported for it by Zhang et al. 2024
(KnowEdit, arXiv 2401.01286).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from typing import TYPE_CHECKING, Any

from kedit_core.contract import MetricInfo, MetricResult, hookimpl
from kedit_core.evaluation import case_of, metric_result
from kedit_core.requests import EditRequest
from kedit_datasets.metrics.cases import Scores, tag_of
from kedit_datasets.metrics.declaring import on_request

if TYPE_CHECKING:
    from kedit_core.editing import EditContext
    from kedit_core.evaluation import Answers

GROUP = "perplexity"
NAME = f"{GROUP}.target"
LARGEST = 700.0
"""Nats; the exponential of a little more is no number any longer."""


def perplexity(nats: float) -> float:
    """``exp`` of nats per token; of more than 700 nats as of 700, so that it is a number."""
    return exp(min(nats, LARGEST))


class PerplexityMetrics:
    """The plugin: ``exp`` of the target's mean negative log-probability per token after the edit prompt.

    The edited model's as the value, the base's in ``parts``; the median beside, since a mean of perplexities goes by
    the largest. Of several spellings the first (``target_new``) is read.
    """

    @hookimpl
    def register_metrics(self) -> Sequence[MetricInfo]:
        """The one metric of this group."""
        summary = "perplexity of the new target after the edit prompt"
        return on_request(GROUP, {"target": summary}, lower=("target",))

    @hookimpl
    def read_ahead(self, context: EditContext, requests: Sequence[EditRequest], answers: Answers) -> None:
        """Ask for the targets."""
        if context.wants(GROUP):
            answers.target_logprobs(_pairs(requests))

    @hookimpl
    def evaluate(
        self, context: EditContext, requests: Sequence[EditRequest], base: Answers, edited: Answers
    ) -> Mapping[str, MetricResult]:
        """The perplexity of every request's target."""
        if not context.wants(GROUP):
            return {}
        pairs = _pairs(requests)
        found = {name: _perplexities(answers, pairs) for name, answers in (("base", base), ("edited", edited))}
        scores = {name: Scores() for name in found}
        outputs: list[dict[str, Any]] = []
        for index, request in enumerate(requests):
            case = case_of(request)
            for name, values in found.items():
                scores[name].add(case, index, values[index])
            outputs.append({
                "case": case, "kind": GROUP, "part": None, "prompt": request.prompt, "expected": [request.target_new],
                "base_perplexity": found["base"][index], "edited_perplexity": found["edited"][index],
            })  # fmt: skip
        return {
            NAME: metric_result(
                scores["edited"].means(),
                tag=tag_of(context, requests, mode="tf_logprob", answer_source="perplexity"),
                case_parts={"base": scores["base"].means()},
                unit="perplexity",
                outputs=outputs,
                statistics=("median",),
            )
        }


def _pairs(requests: Sequence[EditRequest]) -> list[tuple[str, str]]:
    return [(request.prompt, request.target_new) for request in requests]


def _perplexities(answers: Answers, pairs: Sequence[tuple[str, str]]) -> list[float]:
    return [perplexity(-float(logprobs.double().mean())) for logprobs in answers.target_logprobs(pairs)]
