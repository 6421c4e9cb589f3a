"""Group ``ripple``: does what follows from an edit follow, and does the rest stay?

Definitions: Cohen et al. 2023 (RippleEdits, arXiv 2307.12976), read in what the model writes on alone, 30 new tokens.
Each metric comes twice: letters' case counts, as in the benchmark, or not (``_nocase``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from kedit_core.contract import MetricInfo, MetricResult, hookimpl
from kedit_core.evaluation import metric_result
from kedit_core.requests import EditRequest
from kedit_datasets.metrics._ripple import MATERIAL, RULES, Ripple, RippleTest, Rule, ripples_of
from kedit_datasets.metrics.cases import Scores, tag_of
from kedit_datasets.metrics.declaring import on_request

if TYPE_CHECKING:
    from kedit_core.editing import EditContext
    from kedit_core.evaluation import Answers

GROUP = "ripple"
NEW_TOKENS = 30
METRICS: Mapping[str, str] = {
    "accuracy": "share of tests passed, of those that count, of edits that took",
    "tests_kept": "share of tests that count: the unedited model answers their conditions",
    "edited": "the edit itself took, of those not skipped",
    "skipped": "there was nothing to edit: a new fact known already, or an original one unknown",
}

Said = Mapping[str, str]


@frozen(eq=False)
class _Found:
    """Scores of one metric, whole and by criterion (or reason)."""

    whole: Scores = field(factory=Scores)
    parts: dict[str, Scores] = field(factory=dict)
    outputs: list[dict[str, Any]] = field(factory=list)

    def add(self, ripple: Ripple, by_part: Mapping[str, Sequence[float]]) -> None:
        """The mean over the parts that there are, of the mean over each one's scores."""
        means = {part: fmean(scores) for part, scores in by_part.items() if scores}
        for part, mean in means.items():
            self.parts.setdefault(part, Scores()).add(ripple.case, ripple.request, mean)
        if means:
            self.whole.add(ripple.case, ripple.request, fmean(means.values()))


class RippleMetrics:
    """The plugin: accuracy by criterion, and how many tests and edits it stands on.

    Of requests with ``meta["ripple"]``, as the dataset ``ripple_edits`` has it. Edits that are skipped or did not take
    are in no criterion; ``left_out`` of the accuracy counts tests that do not count, whatever for.
    """

    @hookimpl
    def register_metrics(self) -> Sequence[MetricInfo]:
        """Four metrics under two rules."""
        told = {
            f"{name}{rule.name}": text if rule.cased else f"{text} (letters' case does not count)"
            for rule in RULES
            for name, text in METRICS.items()
        }
        return on_request(GROUP, told, neither=[name for name in told if not name.startswith(("accuracy", "edited"))])

    @hookimpl
    def read_ahead(self, context: EditContext, requests: Sequence[EditRequest], answers: Answers) -> None:
        """Ask the base facts and conditions, the edited model facts and tests; raises InputError for odd material."""
        if context.wants(GROUP):
            ripples = ripples_of(requests)
            _said(answers, _of_base(ripples) if answers.is_base else _of_edited(ripples, _tests(ripples)))

    @hookimpl
    def evaluate(
        self, context: EditContext, requests: Sequence[EditRequest], base: Answers, edited: Answers
    ) -> Mapping[str, MetricResult]:
        """The metrics under both rules, or none where no request has such material; InputError where it is odd."""
        if not context.wants(GROUP) or not (ripples := ripples_of(requests)):
            return {}
        chosen = [request for request in requests if MATERIAL in request.meta]
        before = _said(base, _of_base(ripples))
        # tests that count under neither rule need not be asked
        counting = [test for test in _tests(ripples) if any(test.counts(rule, before) for rule in RULES)]
        after = _said(edited, _of_edited(ripples, counting))
        results: dict[str, MetricResult] = {}
        for rule in RULES:
            found = _measured(ripples, rule, before, after)
            tag = tag_of(context, chosen, mode=f"greedy_{NEW_TOKENS}", answer_source=rule.source)
            tests = [output["score"] for output in found["accuracy"].outputs]
            for name, scores in found.items():
                results[f"{GROUP}.{name}{rule.name}"] = metric_result(
                    scores.whole.means(),
                    tag=tag,
                    case_parts={part: each.means() for part, each in scores.parts.items()},
                    outputs=scores.outputs,
                    left_out=tests.count(None) if name == "accuracy" else 0,
                )
        return results


def _measured(ripples: Sequence[Ripple], rule: Rule, before: Said, after: Said) -> dict[str, _Found]:
    found = {name: _Found() for name in METRICS}
    for ripple in ripples:
        skipped = ripple.skipped(rule, before)
        took = rule.holds(ripple.fact, after)
        reason = "already_known" if ripple.recent else "original_unknown"
        found["skipped"].add(ripple, {reason: [float(skipped)]})
        if not skipped:
            found["edited"].whole.add(ripple.case, ripple.request, float(took))
        found["edited"].outputs.append(_fact(ripple, before, after, None if skipped else float(took)))
        kept: dict[str, list[float]] = {}
        passed: dict[str, list[float]] = {}
        for test in ripple.tests:
            counts = test.counts(rule, before)
            kept.setdefault(test.criterion, []).append(float(counts))
            score = float(test.passes(rule, after)) if counts and took and not skipped else None
            if score is not None:
                passed.setdefault(test.criterion, []).append(score)
            found["accuracy"].outputs.append(_shown(ripple, test, after, score))
        found["tests_kept"].add(ripple, kept)
        found["accuracy"].add(ripple, passed)
    return found


def _fact(ripple: Ripple, before: Said, after: Said, score: float | None) -> dict[str, Any]:
    prompt = ripple.fact.prompt
    return {
        "case": ripple.case,
        "kind": GROUP,
        "part": None,
        "prompt": prompt,
        "expected": list(ripple.fact.targets[0]),
        "base": before[prompt],
        "edited": after[prompt],
        "score": score,
    }


def _shown(ripple: Ripple, test: RippleTest, after: Said, score: float | None) -> dict[str, Any]:
    """A test; what was not asked, since the test does not count, is None."""
    return {
        "case": ripple.case,
        "kind": GROUP,
        "part": test.criterion,
        "test": test.number,
        "condition": test.condition,
        "prompt": [query.prompt for query in test.queries],
        "expected": [[list(spellings) for spellings in query.targets] for query in test.queries],
        "edited": [after.get(query.prompt) for query in test.queries],
        "score": score,
    }


def _tests(ripples: Sequence[Ripple]) -> list[RippleTest]:
    return [test for ripple in ripples for test in ripple.tests]


def _of_base(ripples: Sequence[Ripple]) -> list[str]:
    conditions = [query.prompt for test in _tests(ripples) for query in test.conditions]
    return [*(ripple.fact.prompt for ripple in ripples), *conditions]


def _of_edited(ripples: Sequence[Ripple], tests: Sequence[RippleTest]) -> list[str]:
    return [*(ripple.fact.prompt for ripple in ripples), *(query.prompt for test in tests for query in test.queries)]


def _said(answers: Answers, prompts: Sequence[str]) -> dict[str, str]:
    """Prompt -> what is written on."""
    asked = list(dict.fromkeys(prompts))
    return dict(zip(asked, answers.raw_generate(asked, NEW_TOKENS), strict=True))
