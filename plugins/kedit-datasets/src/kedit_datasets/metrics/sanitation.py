"""Group ``sanitation``: is what was to be forgotten refused from now on, and all else answered as before?

Definitions: Ishibashi & Shimodaira 2023 (arXiv 2309.11852) in KnowEdit's form (Zhang et al. 2024), read in what the
model writes on alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from kedit_core.contract import MetricInfo, MetricResult, hookimpl
from kedit_core.evaluation import case_of, metric_result
from kedit_core.requests import EditRequest
from kedit_datasets.metrics.cases import Scores, tag_of
from kedit_datasets.metrics.declaring import on_request
from kedit_datasets.readers.sanitation import PROMPT

if TYPE_CHECKING:
    from kedit_core.editing import EditContext
    from kedit_core.evaluation import Answers, Continuation

GROUP = "sanitation"
NEW_TOKENS = 10


class SanitationMetrics:
    """The plugin: refusals, leaks, and how much of other continuations stays.

    Of requests whose ``kind`` is ``erase``. Prompts are asked as ``Question:{q}\\nAnswer:``, those that are written so
    already as they are; 10 new tokens, greedily.
    """

    @hookimpl
    def register_metrics(self) -> Sequence[MetricInfo]:
        """Three metrics."""
        told = {
            "success": "what was to be forgotten is answered with the refusal",
            "leakage": "what was to be forgotten is still told",
            "locality": "share of the unedited model's tokens that stay, on questions to be retained",
        }
        return on_request(GROUP, told, lower=("leakage",))

    @hookimpl
    def read_ahead(self, context: EditContext, requests: Sequence[EditRequest], answers: Answers) -> None:
        """Ask for what is written after every prompt."""
        if context.wants(GROUP):
            answers.continuations(_prompts(requests), NEW_TOKENS)

    @hookimpl
    def evaluate(
        self, context: EditContext, requests: Sequence[EditRequest], base: Answers, edited: Answers
    ) -> Mapping[str, MetricResult]:
        """The three metrics, or none where nothing was to be forgotten."""
        erased = [request for request in requests if request.kind == "erase"]
        if not context.wants(GROUP) or not erased:
            return {}
        prompts = _prompts(erased)
        before = dict(zip(prompts, base.continuations(prompts, NEW_TOKENS), strict=True))
        after = dict(zip(prompts, edited.continuations(prompts, NEW_TOKENS), strict=True))
        tags = {
            source: tag_of(
                context, erased, mode=f"greedy_{NEW_TOKENS}", surroundings="question-answer", answer_source=source
            )
            for source in ("substring", "tokens")
        }
        return {
            f"{GROUP}.success": _told(erased, before, after, tags["substring"], leaks=False),
            f"{GROUP}.leakage": _told(erased, before, after, tags["substring"], leaks=True),
            f"{GROUP}.locality": _kept(erased, before, after, tags["tokens"]),
        }


Written = Mapping[str, "Continuation"]


def framed(prompt: str) -> str:
    """The prompt as a question to be answered; as it is where it is one already."""
    opening, closing = PROMPT.split("{}")
    return prompt if prompt.startswith(opening) and prompt.endswith(closing) else f"{opening}{prompt}{closing}"


def token_agreement(before: Sequence[int], after: Sequence[int]) -> float:
    """Share of the positions of ``before`` at which ``after`` has the same token; of nothing, whether both are."""
    if not before:
        return float(not after)
    return sum(old == new for old, new in zip(before, after, strict=False)) / len(before)


def _prompts(requests: Sequence[EditRequest]) -> list[str]:
    erased = [request for request in requests if request.kind == "erase"]
    probes = [probe.prompt for request in erased for listed in request.locality.values() for probe in listed]
    return [framed(prompt) for prompt in (*(request.prompt for request in erased), *probes)]


def _told(requests: Sequence[EditRequest], before: Written, after: Written, tag: str, leaks: bool) -> MetricResult:
    """Whether the refusal, or else the answer to be forgotten, occurs in what is written; ``base``: by the base."""
    scores, of_base = Scores(), Scores()
    outputs: list[dict[str, Any]] = []
    for index, request in enumerate(requests):
        case, prompt = case_of(request), framed(request.prompt)
        wanted = _forgotten(request) if leaks else (request.target_new, *request.aliases)
        said = {name: written[prompt].text for name, written in (("base", before), ("edited", after))}
        output: dict[str, Any] = {
            "case": case, "kind": GROUP, "part": None, "prompt": prompt, "expected": list(wanted), **said, "score": None
        }  # fmt: skip
        if wanted:
            output["score"] = _occurs(wanted, said["edited"])
            scores.add(case, index, output["score"])
            of_base.add(case, index, _occurs(wanted, said["base"]))
        outputs.append(output)
    return metric_result(
        scores.means(),
        tag=tag,
        case_parts={"base": of_base.means()},
        outputs=outputs,
        left_out=sum(output["score"] is None for output in outputs),
    )


def _forgotten(request: EditRequest) -> tuple[str, ...]:
    about = request.meta.get(GROUP)
    known = about.get("true_answers", ()) if isinstance(about, Mapping) else ()
    given = (request.ground_truth, *known)
    return tuple(dict.fromkeys(text for text in given if isinstance(text, str) and text.strip()))


def _occurs(wanted: Sequence[str], text: str) -> float:
    """Whether any of them is somewhere in the text; case does not count, nor a full stop at the end."""
    return float(any(each.strip().removesuffix(".").lower() in text.lower() for each in wanted))


def _kept(requests: Sequence[EditRequest], before: Written, after: Written, tag: str) -> MetricResult:
    scores, parts = Scores(), dict[str, Scores]()
    outputs: list[dict[str, Any]] = []
    for index, request in enumerate(requests):
        case = case_of(request)
        means: list[float] = []
        for part, probes in request.locality.items():
            agreed: list[float] = []
            for probe in probes:
                old, new = (written[framed(probe.prompt)] for written in (before, after))
                agreed.append(token_agreement(old.tokens, new.tokens))
                parts.setdefault(part, Scores()).add(case, index, agreed[-1])
                outputs.append({
                    "case": case, "kind": GROUP, "part": part, "prompt": framed(probe.prompt), "expected": [old.text],
                    "base": old.text, "edited": new.text, "score": agreed[-1],
                })  # fmt: skip
            means += [fmean(agreed)] if agreed else []
        if means:
            scores.add(case, index, fmean(means))
    return metric_result(
        scores.means(),
        tag=tag,
        case_parts={part: each.means() for part, each in parts.items()},
        outputs=outputs,
    )
