"""Group ``mquake``: are edits recalled, one by one, all of a case, and in questions of several hops?

Definitions: Zhong et al. 2023 (MQuAKE, arXiv 2305.14795). Answers are read as by ``gen_free``: the question alone,
greedily, exact match after normalisation with any alias.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from kedit_core.contract import MetricInfo, MetricResult, hookimpl
from kedit_core.evaluation import metric_result
from kedit_core.requests import EditRequest
from kedit_datasets.metrics._mquake import MATERIAL, Asked, Case, Hop, cases_of
from kedit_datasets.metrics.cases import tag_of
from kedit_datasets.metrics.declaring import on_request

if TYPE_CHECKING:
    from kedit_core.editing import EditContext
    from kedit_core.evaluation import Answers

GROUP = "mquake"
KNOWN = "base_recalled"
"""Part of every metric: over the cases all of whose old hops the unedited model knows."""


@frozen(eq=False)
class _Found:
    """Scores of a metric by case, whole and in parts."""

    whole: dict[str, float] = field(factory=dict)
    parts: dict[str, dict[str, float]] = field(factory=dict)
    outputs: list[dict[str, Any]] = field(factory=list)

    def add(self, case: str, score: float, **parts: float | None) -> None:
        self.whole[case] = score
        for name, value in parts.items():
            if value is not None:
                self.parts.setdefault(name, {})[case] = value

    def show(self, case: str, asked: Iterable[Asked], said: Mapping[str, str], model: str, part: str | None) -> None:
        self.outputs.extend(
            {"case": case, "kind": GROUP, "part": part, "prompt": each.prompt, "expected": list(each.answers),
             model: said[each.prompt], "score": float(each.right(said))}
            for each in asked
        )  # fmt: skip


class MultiHopMetrics:
    """The plugin: edit-wise, instance-wise and multi-hop accuracy, and what the unedited model recalls.

    Of cases whose requests have ``meta["mquake"]``, as the dataset ``mquake`` has it. A single hop is right when its
    question or its cloze is answered right (parts ``question`` and ``cloze`` tell them apart), a case's multi-hop
    questions when any is. ``base_recalled`` in ``parts`` is a metric over the cases all of whose old hops the unedited
    model knows.
    """

    @hookimpl
    def register_metrics(self) -> Sequence[MetricInfo]:
        """Four metrics."""
        told = {
            "edit_wise": "share of a case's rewrites that are answered with the new target",
            "instance_wise": "all new single hops of a case are known",
            "multi_hop": "any of a case's multi-hop questions is answered with the new answer",
            "base_recall": "the unedited model knows all old single hops of a case",
        }
        return on_request(GROUP, told, neither=("base_recall",))

    @hookimpl
    def read_ahead(self, context: EditContext, requests: Sequence[EditRequest], answers: Answers) -> None:
        """Ask the base about what was and the edited model about what is; raises InputError for odd material."""
        if context.wants(GROUP):
            _said(answers, cases_of(requests), answers.is_base)

    @hookimpl
    def evaluate(
        self, context: EditContext, requests: Sequence[EditRequest], base: Answers, edited: Answers
    ) -> Mapping[str, MetricResult]:
        """The four metrics, or none where no request has such material; raises InputError where it is odd."""
        if not context.wants(GROUP) or not (cases := cases_of(requests)):
            return {}
        before, after = _said(base, cases, True), _said(edited, cases, False)
        recalled = {case.name: _all_right(case.old_hops, before) for case in cases}
        chosen = [request for request in requests if MATERIAL in request.meta]
        found = {
            "edit_wise": ("EM", _edit_wise(cases, after)),
            "instance_wise": ("EM_any_wording", _instance_wise(cases, after)),
            "multi_hop": ("EM_any_question", _multi_hop(cases, after)),
            "base_recall": ("EM_any_wording", _base_recall(cases, before)),
        }
        results: dict[str, MetricResult] = {}
        for name, (source, scores) in found.items():
            if name != "base_recall":
                scores.parts[KNOWN] = {case: score for case, score in scores.whole.items() if recalled[case]}
            results[f"{GROUP}.{name}"] = metric_result(
                scores.whole,
                tag=tag_of(context, chosen, mode="gen_free", answer_source=source),
                case_parts=scores.parts,
                outputs=scores.outputs,
                left_out=len(cases) - len(scores.whole),
            )
        return results


def _edit_wise(cases: Sequence[Case], said: Mapping[str, str]) -> _Found:
    found = _Found()
    for case in cases:
        found.add(case.name, fmean(each.right(said) for each in case.rewrites))
        found.show(case.name, case.rewrites, said, "edited", None)
    return found


def _instance_wise(cases: Sequence[Case], said: Mapping[str, str]) -> _Found:
    found = _Found()
    for case in cases:
        if (score := _all_right(case.new_hops, said)) is not None:
            found.add(case.name, score, **_by_wording(case.new_hops, said))
            _show_hops(found, case.name, case.new_hops, said, "edited")
    return found


def _multi_hop(cases: Sequence[Case], said: Mapping[str, str]) -> _Found:
    found = _Found()
    for case in cases:
        if case.new_questions:
            found.add(case.name, float(any(each.right(said) for each in case.new_questions)))
            found.show(case.name, case.new_questions, said, "edited", None)
    return found


def _base_recall(cases: Sequence[Case], said: Mapping[str, str]) -> _Found:
    """Old single hops; in parts also the multi-hop questions with their old answer."""
    found = _Found()
    for case in cases:
        if (score := _all_right(case.old_hops, said)) is not None:
            asked = case.old_questions
            multi_hop = float(any(each.right(said) for each in asked)) if asked else None
            found.add(case.name, score, **_by_wording(case.old_hops, said), multi_hop=multi_hop)
            _show_hops(found, case.name, case.old_hops, said, "base")
            found.show(case.name, asked, said, "base", "multi_hop")
    return found


def _all_right(hops: Sequence[Hop], said: Mapping[str, str]) -> float | None:
    return float(all(hop.right(said) for hop in hops)) if hops else None


def _by_wording(hops: Sequence[Hop], said: Mapping[str, str]) -> dict[str, float | None]:
    """Whether all hops are right in one wording; None where a hop has no cloze."""
    clozes = [hop.cloze for hop in hops if hop.cloze is not None]
    return {
        "question": float(all(hop.question.right(said) for hop in hops)),
        "cloze": float(all(each.right(said) for each in clozes)) if len(clozes) == len(hops) else None,
    }


def _show_hops(found: _Found, case: str, hops: Sequence[Hop], said: Mapping[str, str], model: str) -> None:
    found.show(case, (hop.question for hop in hops), said, model, "question")
    found.show(case, (hop.cloze for hop in hops if hop.cloze is not None), said, model, "cloze")


def _said(answers: Answers, cases: Sequence[Case], of_base: bool) -> dict[str, str]:
    prompts = list(dict.fromkeys(each.prompt for case in cases for each in case.asked(of_base)))
    return dict(zip(prompts, answers.generate(prompts), strict=True))
