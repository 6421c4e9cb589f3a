"""Group ``convsent``: does the edited model speak of a topic with the sentiment it was given, and of others as before?

Definitions: Mitchell et al. 2022 (SERAC, arXiv 2206.06520), with log-probabilities of answer tokens as a
causal model has them: each token's own, per row, of the edited model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from kedit_core.contract import MetricInfo, MetricResult, hookimpl
from kedit_core.errors import InputError
from kedit_core.evaluation import case_of, metric_result
from kedit_core.requests import EditRequest
from kedit_datasets.metrics.cases import Scores, tag_of
from kedit_datasets.metrics.declaring import on_request

if TYPE_CHECKING:
    from torch import Tensor

    from kedit_core.editing import EditContext
    from kedit_core.evaluation import Answers

GROUP = "convsent"
MATERIAL = "sentiment"
SIGNS = {"positive": ("pos", "neg"), "negative": ("neg", "pos")}
"""Sign of an edit -> names of the completions it wants and of the opposite ones."""

Pairs = tuple[tuple[str, str], ...]


@frozen(kw_only=True)
class _Topic:
    """One request's completions, each with its question; the three may be empty."""

    case: str
    request: int
    wanted: Pairs
    opposite: Pairs
    other: Pairs


@frozen(eq=False)
class _Found:
    """What is known of a metric while its topics are gone through."""

    whole: Scores = field(factory=Scores)
    parts: dict[str, Scores] = field(factory=dict)
    outputs: list[dict[str, Any]] = field(factory=list)

    def add(self, topic: _Topic, score: float | None, parts: Mapping[str, float] | None = None) -> None:
        self.outputs.append({"case": topic.case, "kind": GROUP, "part": None, "score": score, **(parts or {})})
        if score is not None:
            self.whole.add(topic.case, topic.request, score)
            for name, value in (parts or {}).items():
                self.parts.setdefault(name, Scores()).add(topic.case, topic.request, value)

    def result(self, tag: str, unit: str = "share") -> MetricResult:
        return metric_result(
            self.whole.means(),
            tag=tag,
            case_parts={name: scores.means() for name, scores in self.parts.items()},
            unit=unit,
            outputs=self.outputs,
            left_out=sum(output["score"] is None for output in self.outputs),
        )


class ConvSentMetrics:
    """The plugin: edit success of a sentiment, and the drawdown on another topic.

    Of requests with ``meta["sentiment"]``, as the dataset ``convsent`` has it; a case is left out and counted where it
    has no completions of one sign, or no other topic. (In a batch the other topic has been edited, too.)
    """

    @hookimpl
    def register_metrics(self) -> Sequence[MetricInfo]:
        """Two metrics."""
        told = {
            "edit_success": "completions of the given sign are likelier than the opposite, and as likely as before",
            "drawdown": "KL divergence from the unedited model on another topic's answers",
        }
        return on_request(GROUP, told, lower=("drawdown",))

    @hookimpl
    def read_ahead(self, context: EditContext, requests: Sequence[EditRequest], answers: Answers) -> None:
        """Ask for the completions (not for the drawdown, which is read with the edit on the model only).

        Raises InputError for requests whose material is not as it should be.
        """
        if context.wants(GROUP) and (topics := _topics(requests)):
            answers.target_logprobs([pair for topic in topics for pair in _asked(topic, answers.is_base)])

    @hookimpl
    def evaluate(
        self, context: EditContext, requests: Sequence[EditRequest], base: Answers, edited: Answers
    ) -> Mapping[str, MetricResult]:
        """Both metrics, or none where no request has such material; raises InputError where it is not as it should."""
        if not context.wants(GROUP) or not (topics := _topics(requests)):
            return {}
        chosen = [request for request in requests if MATERIAL in request.meta]
        tags = {
            name: tag_of(context, chosen, mode=mode, surroundings="templates", answer_source=source)
            for name, mode, source in (("success", "tf_logprob", "sentiment"), ("drawdown", "tf_kl", "base"))
        }
        return {
            f"{GROUP}.edit_success": _success(topics, base, edited).result(tags["success"]),
            f"{GROUP}.drawdown": _drawdown(topics, edited).result(tags["drawdown"], unit="nats"),
        }


def edit_success(wanted: float, opposite: float, wanted_before: float) -> tuple[float, float]:
    """Sentiment and topic scores ``(z_sentiment, z_topic)``, whose product is the edit success.

    ``z_sentiment = sigmoid(P+ - P-)``, ``z_topic = min(1, exp(P+ - P+ before))``; arguments are mean log-probabilities
    per token.
    """
    margin = wanted - opposite
    # the form whose exponent is not positive, so that nothing overflows
    sentiment = 1 / (1 + exp(-margin)) if margin >= 0 else exp(margin) / (1 + exp(margin))
    return sentiment, exp(min(0.0, wanted - wanted_before))


def _success(topics: Sequence[_Topic], base: Answers, edited: Answers) -> _Found:
    before = _means(base, [topic.wanted for topic in topics])
    wanted = _means(edited, [topic.wanted for topic in topics])
    opposite = _means(edited, [topic.opposite for topic in topics])
    found = _Found()
    for topic, old, new, against in zip(topics, before, wanted, opposite, strict=True):
        if old is None or new is None or against is None:
            found.add(topic, None)
        else:
            sentiment, on_topic = edit_success(new, against, old)
            found.add(topic, sentiment * on_topic, {"sentiment": sentiment, "topic": on_topic})
    return found


def _drawdown(topics: Sequence[_Topic], edited: Answers) -> _Found:
    divergences = iter(edited.target_divergences([pair for topic in topics for pair in topic.other]))
    found = _Found()
    for topic in topics:
        moved = [next(divergences) for _ in topic.other]
        found.add(topic, _mean([each for each in moved if each is not None]))
    return found


def _means(answers: Answers, groups: Sequence[Pairs]) -> list[float | None]:
    """For each group the mean log-probability over all its target tokens; None for an empty one."""
    logprobs = iter(answers.target_logprobs([pair for group in groups for pair in group]))
    return [_mean([next(logprobs) for _ in group]) for group in groups]


def _mean(values: Sequence[Tensor]) -> float | None:
    count = sum(len(each) for each in values)
    return sum(float(each.double().sum()) for each in values) / count if count else None


def _asked(topic: _Topic, of_base: bool) -> Pairs:
    return topic.wanted if of_base else (*topic.wanted, *topic.opposite)


def _topics(requests: Sequence[EditRequest]) -> list[_Topic]:
    return [_topic(request, index) for index, request in enumerate(requests) if MATERIAL in request.meta]


def _topic(request: EditRequest, index: int) -> _Topic:
    about = request.meta[MATERIAL]
    if not isinstance(about, Mapping) or about.get("sign") not in SIGNS:
        raise _fault(request, f'a "sign", which is one of {", ".join(SIGNS)}')
    wanted, opposite = SIGNS[about["sign"]]
    other = about.get("drawdown", {})
    if not isinstance(other, Mapping):
        raise _fault(request, 'as "drawdown" another topic, or none')
    return _Topic(
        case=case_of(request),
        request=index,
        wanted=_pairs(request, about, wanted),
        opposite=_pairs(request, about, opposite),
        other=tuple(pair for name in ("pos", "neg") for pair in _pairs(request, other, name)),
    )


def _pairs(request: EditRequest, about: Mapping[str, Any], name: str) -> Pairs:
    """Each completion of a kind with its question; both lists are equally long, or neither is there."""
    questions, completions = about.get(f"{name}_prompts", ()), about.get(name, ())
    if not (_texts(questions) and _texts(completions) and len(questions) == len(completions)):
        raise _fault(request, f'"{name}", a list of texts, and "{name}_prompts", the question of each')
    return tuple(zip(questions, completions, strict=True))


def _texts(listed: Any) -> bool:
    return isinstance(listed, list | tuple) and all(isinstance(text, str) for text in listed)


def _fault(request: EditRequest, wanted: str) -> InputError:
    return InputError(
        f"the metrics {GROUP!r} cannot use meta[{MATERIAL!r}] of case {case_of(request)!r}; it must have {wanted} (as "
        "the dataset convsent gives it)"
    )
