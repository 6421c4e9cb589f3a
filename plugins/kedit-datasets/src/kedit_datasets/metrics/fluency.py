"""Group ``fluency``: does the edited model still write varied text (generation entropy, GE)?

Definition: Meng et al. 2022 (ROME, section 3.3); Zhang et al. 2024 (KnowEdit) call it fluency.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field

from kedit_core.contract import MetricInfo, MetricResult, hookimpl
from kedit_core.evaluation import case_of, metric_result
from kedit_core.requests import EditRequest
from kedit_datasets.metrics.cases import Scores, tag_of
from kedit_datasets.metrics.ngrams import generation_entropy, word_tokenizer
from kedit_datasets.metrics.sampling import MODE, ask, has_openings, sampled_texts
from kedit_datasets.metrics.sanitation import framed

if TYPE_CHECKING:
    from kedit_core.editing import EditContext
    from kedit_core.evaluation import Answers

GROUP = "fluency"
NAME = f"{GROUP}.ngram_entropy"

Words = Callable[[str], list[str]]


@define(eq=False)
class FluencyMetrics:
    """The plugin: GE of sampled texts, of the edited model as the value and of the base in ``parts``.

    Texts begin with the ``generation_prompts`` where any request of the run has some; else, where all requests are to
    erase something, with their locality prompts (what is asked of a sanitised model beside what it is to refuse); else
    with the edit prompts. Requests without such prompts are left out and counted; the tag tells which they are.

    Attributes:
        words: how a text becomes words; NLTK's tokenizer when None.
    """

    words: Words | None = field(default=None)

    @hookimpl
    def register_metrics(self) -> Sequence[MetricInfo]:
        """The one metric of this group."""
        summary = "entropy of the 2- and 3-grams of text that the edited model writes, in bits"
        return [MetricInfo(name=NAME, summary=summary, on_request=True, better="higher")]

    @hookimpl
    def read_ahead(self, context: EditContext, requests: Sequence[EditRequest], answers: Answers) -> None:
        """Ask for the texts; raises MissingExtraError without NLTK."""
        if context.wants(GROUP):
            self._tokenizer()
            ask(context, answers, [prompt for _, prompt in _prompts(context, requests)])

    @hookimpl
    def evaluate(
        self, context: EditContext, requests: Sequence[EditRequest], base: Answers, edited: Answers
    ) -> Mapping[str, MetricResult]:
        """GE of what both models write; raises MissingExtraError without NLTK."""
        if not context.wants(GROUP):
            return {}
        words = self._tokenizer()
        asked = _prompts(context, requests)
        texts = {
            name: sampled_texts(context, answers, [prompt for _, prompt in asked])
            for name, answers in (("base", base), ("edited", edited))
        }
        scores = {"base": Scores(), "edited": Scores()}
        outputs: list[dict[str, Any]] = []
        for number, (index, prompt) in enumerate(asked):
            case = case_of(requests[index])
            output: dict[str, Any] = {"case": case, "kind": GROUP, "part": None, "prompt": prompt}
            for name, of_model in texts.items():
                output[name] = of_model[number]
                output[f"{name}_entropy"] = entropy = generation_entropy(words(of_model[number]))
                if entropy is not None:
                    scores[name].add(case, index, entropy)
            outputs.append(output)
        return {
            NAME: metric_result(
                scores["edited"].means(),
                tag=tag_of(
                    context,
                    requests,
                    mode=MODE,
                    surroundings=_kind(context, requests),
                    answer_source="GE",
                ),
                case_parts={"base": scores["base"].means()},
                unit="bits",
                outputs=outputs,
                statistics=("std",),
                left_out=sum(output["edited_entropy"] is None for output in outputs)
                + sum(not of_request for of_request in _texts(context, requests)),
            )
        }

    def _tokenizer(self) -> Words:
        if self.words is None:
            self.words = word_tokenizer()
        return self.words


def _kind(context: EditContext, requests: Sequence[EditRequest]) -> str:
    """What texts begin with; the run as a whole decides, so that cases agree."""
    run = context.requests or requests
    if has_openings(run):
        return "generation-prompts"
    if all(request.kind == "erase" for request in run) and any(request.locality for request in run):
        return "locality-prompts"
    return "edit-prompts"


def _texts(context: EditContext, requests: Sequence[EditRequest]) -> list[list[str]]:
    """The prompts of each request's texts, of the one kind."""
    kind = _kind(context, requests)
    if kind == "generation-prompts":
        return [list(request.generation_prompts) for request in requests]
    if kind == "locality-prompts":
        return [[framed(p.prompt) for listed in request.locality.values() for p in listed] for request in requests]
    return [[request.prompt] for request in requests]


def _prompts(context: EditContext, requests: Sequence[EditRequest]) -> list[tuple[int, str]]:
    """(index of its request, prompt) of every text."""
    return [(index, prompt) for index, prompts in enumerate(_texts(context, requests)) for prompt in prompts]
