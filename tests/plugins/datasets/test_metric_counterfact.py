from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import harmonic_mean
from typing import Any

import pytest
import torch
import toy_methods
from attrs import evolve
from metric_tools import ALONE, HandMade, logits_for, told

from kedit_core import Editor, EditRequest, Probe
from kedit_core.evaluation import Evaluation, combine
from kedit_core.testing.tiny import tiny
from kedit_datasets.metrics.counterfact import KINDS, CounterFactMetrics

WORDS = ["Oslo", "Paris", "New", "York", "?", "!"]
MEASURES = ("score", "magnitude", "accuracy")


def case(number: int = 1, **changes: Any) -> EditRequest:
    fields: dict[str, Any] = {
        "case_id": str(number),
        "prompt": f"{number} The capital of Norway is",
        "target_new": "Paris",
        "ground_truth": "New York",
        "rephrase_prompts": (f"{number} Norway's capital is", f"{number} Norway is ruled from"),
        "locality": {
            "neighborhood": (Probe(prompt=f"{number} Sweden's is", answers=("New York",)), Probe(prompt=f"{number} X")),
            "other": (Probe(prompt="never asked"),),
        },
    }
    return EditRequest(**{**fields, **changes})


def rows(new: float, *true: float) -> list[list[float]]:
    """Logits by which a one-token ``Paris`` and a two-token ``New York`` have these probabilities, token by token."""
    return [logits_for({"Paris": new, "New": true[0]}, WORDS), logits_for({"York": true[1]}, WORDS)]


def prompts_of(request: EditRequest) -> list[str]:
    return [request.prompt, *request.rephrase_prompts, *(p.prompt for p in request.locality["neighborhood"])]


def model(request: EditRequest, *numbers: tuple[float, float, float]) -> dict[str, list[list[float]]]:
    return {prompt: rows(*each) for prompt, each in zip(prompts_of(request), numbers, strict=True)}


def perfect(request: EditRequest) -> dict[str, list[list[float]]]:
    return model(request, *[(0.9, 0.01, 0.5)] * 3, *[(0.01, 0.9, 0.9)] * 2)


def unedited(request: EditRequest) -> dict[str, list[list[float]]]:
    return model(request, *[(0.1, 0.6, 0.7)] * 5)


def measure(requests: Sequence[EditRequest], base: HandMade, edited: HandMade, **more: Any) -> Any:
    context = told("counterfact", requests=requests, **more)
    return CounterFactMetrics().evaluate(context=context, requests=requests, base=base, edited=edited)


def test_a_perfect_oracle_scores_one_everywhere() -> None:
    requests = [case(1), case(2)]
    base = HandMade(WORDS, {k: v for r in requests for k, v in unedited(r).items()})
    edited = HandMade(WORDS, {k: v for r in requests for k, v in perfect(r).items()})
    results = measure(requests, base, edited)
    for kind in KINDS:
        assert results[f"counterfact.{kind}_score"].value == 1.0
        assert results[f"counterfact.{kind}_accuracy"].value == 1.0
    assert results["counterfact.score"].value == 1.0
    assert results["counterfact.efficacy_score"].parts == {"base": 0.0, "std": 0.0}
    assert results["counterfact.neighborhood_score"].parts["base"] == 1.0
    assert results["counterfact.base_score"].value == 0.0


def test_an_unedited_models_numbers_are_those_from_before() -> None:
    request = case()
    model = HandMade(WORDS, unedited(request))
    results = measure([request], model, model)
    for kind in KINDS:
        for name in MEASURES:
            result = results[f"counterfact.{kind}_{name}"]
            assert result.value == result.parts["base"]
    assert results["counterfact.score"].value == results["counterfact.base_score"].value
    magnitude = results["counterfact.efficacy_magnitude"].value
    assert magnitude == pytest.approx(0.1 - math.sqrt(0.6 * 0.7), abs=1e-6)


def test_hand_made_logits_give_the_numbers_of_the_definition() -> None:
    request = case()
    # the true answer's two tokens together are less likely than the new one's, per token they are likelier
    numbers = [(0.3, 0.2, 0.2), (0.1, 0.5, 0.5), (0.5, 0.1, 0.1), (0.3, 0.64, 0.25), (0.6, 0.1, 0.4)]
    edited = HandMade(WORDS, model(request, *numbers))
    results = measure([request], HandMade(WORDS, unedited(request)), edited)
    values = {name.partition(".")[2]: result.value for name, result in results.items()}
    assert values["efficacy_score"] == 1.0
    assert values["efficacy_magnitude"] == pytest.approx(0.3 - 0.2, abs=1e-6)
    assert values["paraphrase_score"] == 0.5
    assert values["paraphrase_magnitude"] == pytest.approx(((0.1 - 0.5) + (0.5 - 0.1)) / 2, abs=1e-6)
    assert values["neighborhood_score"] == 0.5
    assert values["neighborhood_magnitude"] == pytest.approx(((0.4 - 0.3) + (0.2 - 0.6)) / 2, abs=1e-6)
    assert values["efficacy_accuracy"] == 1.0  # 0.3 is the largest of that row
    assert values["paraphrase_accuracy"] == 0.5
    assert values["neighborhood_accuracy"] == 0.5  # "New York" is the argmax token by token of the first only
    assert values["score"] == pytest.approx(harmonic_mean([1.0, 0.5, 0.5]))
    (first, second) = results["counterfact.neighborhood_score"].outputs
    assert (first["expected"], first["instead_of"], first["score"]) == (["New York"], "Paris", 1.0)
    assert second["nll"]["edited"]["expected"] == pytest.approx(-math.log(0.2), abs=1e-6)


def test_answers_that_are_equally_likely_are_preferred_by_nobody() -> None:
    request = case(ground_truth="Oslo")
    same = [logits_for({"Paris": 0.3, "Oslo": 0.3}, WORDS)]
    model = HandMade(WORDS, dict.fromkeys(prompts_of(request), same))
    results = measure([request], model, model)
    assert [results[f"counterfact.{kind}_score"].value for kind in KINDS] == [0.0, 0.0, 0.0]
    assert results["counterfact.score"].value == 0.0


def test_the_score_is_of_means_over_records_however_they_were_evaluated() -> None:
    one, two, three = case(1), case(2), case(3)
    logits = {
        **model(one, (0.5, 0.1, 0.1), (0.5, 0.1, 0.1), (0.1, 0.5, 0.5), *[(0.1, 0.5, 0.5)] * 2),
        **model(two, (0.1, 0.5, 0.5), *[(0.5, 0.1, 0.1)] * 2, (0.1, 0.5, 0.5), (0.5, 0.1, 0.1)),
        **model(three, *[(0.5, 0.1, 0.1)] * 3, *[(0.1, 0.5, 0.5)] * 2),
    }
    edited, base = (
        HandMade(WORDS, logits),
        HandMade(WORDS, {k: v for r in (one, two, three) for k, v in unedited(r).items()}),
    )
    every = [one, two, three]
    whole = Evaluation(metrics=measure(every, base, edited, scenario="single"))
    apart = [Evaluation(metrics=measure([each], base, edited, scenario="single")) for each in every]
    combined = combine(apart)
    assert combined.metrics == whole.metrics
    score = combined["counterfact.score"]
    assert score.parts == {
        "efficacy": pytest.approx(2 / 3),
        "paraphrase": pytest.approx(2.5 / 3),
        "neighborhood": pytest.approx(2.5 / 3),
    }
    assert score.value == pytest.approx(harmonic_mean([2 / 3, 2.5 / 3, 2.5 / 3]))
    assert score.cases == {"1": pytest.approx(0.75), "2": 0.0, "3": 1.0}
    assert abs((score.value or 0) - sum(score.cases.values()) / 3) > 0.1


def test_requests_of_one_case_are_averaged_before_cases() -> None:
    right, wrong, alone = case(1), evolve(case(2), case_id="1"), case(3)
    logits = {**perfect(right), **unedited(wrong), **unedited(alone)}
    model = HandMade(WORDS, logits)
    results = measure([right, wrong, alone], model, model)
    assert results["counterfact.efficacy_score"].cases == {"1": 0.5, "3": 0.0}
    assert results["counterfact.efficacy_score"].value == 0.25


def test_what_cannot_be_judged_is_left_out_and_counted() -> None:
    known, unknown = case(1, rephrase_prompts=()), case(2, ground_truth=None)
    model = HandMade(WORDS, {p: rows(0.5, 0.1, 0.1) for p in prompts_of(known)})
    results = measure([known, unknown], model, model)
    assert results["counterfact.efficacy_score"].left_out == 1
    assert results["counterfact.paraphrase_score"].left_out == 2
    assert results["counterfact.neighborhood_score"].left_out == 2
    assert results["counterfact.paraphrase_score"].value is None
    # two of the three scores are no score S
    assert results["counterfact.score"].value is None
    assert results["counterfact.efficacy_score"].cases == {"1": 1.0}


def test_tags_tell_probabilities_from_tokens() -> None:
    request = case()
    model = HandMade(WORDS, unedited(request))
    results = measure([request], model, model, scenario="sequential")
    assert results["counterfact.efficacy_score"].tag == "nll.question-only.new-against-true.sequential.1+merged"
    assert results["counterfact.efficacy_accuracy"].tag == "tf_exact.question-only.argmax.sequential.1+merged"
    assert set(results) == {info.name for info in CounterFactMetrics().register_metrics()}
    assert all(info.on_request and info.group == "counterfact" for info in CounterFactMetrics().register_metrics())


def test_all_is_asked_ahead_and_nothing_where_it_is_not_wanted() -> None:
    request = case()
    ahead, base, edited = (HandMade(WORDS, unedited(request)) for _ in range(3))
    plugin = CounterFactMetrics()
    plugin.read_ahead(context=told("counterfact"), requests=[request], answers=ahead)
    plugin.evaluate(context=told("counterfact"), requests=[request], base=base, edited=edited)
    assert set(base.asked) == set(edited.asked) == set(ahead.asked)
    quiet = HandMade()
    plugin.read_ahead(context=told("fluency"), requests=[request], answers=quiet)
    assert plugin.evaluate(context=told("fluency"), requests=[request], base=quiet, edited=quiet) == {}
    assert quiet.asked == []


# ---------------------------------------------------------------------- a real model
CATALOGUE = ALONE.including(*toy_methods.ALL)
FACTS = [
    EditRequest(
        case_id=str(number),
        prompt=f"The capital of {country} is",
        subject=country,
        target_new="Rome",
        ground_truth="Paris",
        rephrase_prompts=(f"{country} is ruled from",),
        locality={"neighborhood": (Probe(prompt="The capital of Spain is"), Probe(prompt="Paris is"))},
    )
    for number, country in enumerate(("France", "Italy"))
]


def plain_nll(model: Any, tokenizer: Any, prompt: str, target: str) -> float:
    """One forward pass over prompt and target, nothing batched or cached."""
    prefix, whole = tokenizer(prompt)["input_ids"], tokenizer(f"{prompt} {target}")["input_ids"]
    assert whole[: len(prefix)] == prefix
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), -1)
    steps = [float(logprobs[i - 1, whole[i]]) for i in range(len(prefix), len(whole))]
    return -sum(steps) / len(steps)


def test_a_real_models_numbers_are_those_of_plain_forward_passes() -> None:
    model, tokenizer = tiny("gpt2")
    editor = Editor(model, tokenizer, catalogue=ALONE, plugins=[CounterFactMetrics()])
    evaluation = editor.evaluate(FACTS, metrics=["counterfact"])
    by_kind: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for fact in FACTS:
        neighbours = [probe.prompt for probe in fact.locality["neighborhood"]]
        for kind, prompts in zip(KINDS, ([fact.prompt], fact.rephrase_prompts, neighbours), strict=True):
            differences = []
            for prompt in prompts:
                new, true = (math.exp(-plain_nll(model, tokenizer, prompt, t)) for t in ("Rome", "Paris"))
                differences.append(true - new if kind == "neighborhood" else new - true)
            by_kind[kind].append(sum(differences) / len(differences))
    for kind, values in by_kind.items():
        magnitude = evaluation[f"counterfact.{kind}_magnitude"]
        assert magnitude.value == pytest.approx(sum(values) / len(values), abs=1e-6)
        assert magnitude.value == magnitude.parts["base"]
        assert abs(magnitude.value or 0) > 1e-4


def test_an_edit_is_measured_in_every_scenario() -> None:
    model, tokenizer = tiny("gpt2")
    editor = Editor(model, tokenizer, method="nudge", catalogue=CATALOGUE, plugins=[CounterFactMetrics()])
    single = editor.edit(FACTS, scenario="single", metrics=["counterfact"]).evaluation
    assert single is not None
    magnitude = single["counterfact.efficacy_magnitude"]
    assert (magnitude.value or 0) > magnitude.parts["base"] > 0
    assert single["counterfact.efficacy_score"].value == 1.0
    score = single["counterfact.score"]
    assert set(score.cases) == {"0", "1"}
    assert score.tag == "nll.question-only.new-against-true.single.2+merged"
    assert "counterfact.score" not in (editor.evaluate(FACTS))
