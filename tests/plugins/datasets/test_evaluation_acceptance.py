"""What evaluation must do whatever is edited: the checks of its definitions that concern metrics on request.

Those of the core's metrics are in tests/core/evaluation/test_acceptance.py. Each metric's own file goes further.
"""

from __future__ import annotations

import functools
import math
from statistics import harmonic_mean
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from metric_tools import HandMade, logits_for, told

from kedit_core import Editor, EditRequest, Probe
from kedit_core.evaluation import exact_match, metric_result
from kedit_datasets.metrics.convsent import edit_success
from kedit_datasets.metrics.counterfact import CounterFactMetrics
from kedit_datasets.metrics.errors import ErrorMetrics
from kedit_datasets.metrics.failures import CLASSES, IRRELEVANT, MEANINGLESS, MISSING, PARTIAL, classify
from kedit_datasets.metrics.ngrams import generation_entropy, ngram_entropy

ASKED = ("counterfact", "convsent", "perplexity", "gold", "qaedit", "errors", "sanitation")


@functools.cache
def world() -> Editor:
    """A trained model with facts, and every metric that is installed; no test here edits it."""
    return Editor.from_pretrained("factworld:gpt2")


def facts(count: int) -> list[EditRequest]:
    """Cases with all that the metrics ask for: a topic to speak of, and what is retained."""
    found = []
    for case in list(world().host.dataset("factworld").requests() or ())[:count]:  # type: ignore[misc]
        near = case.locality["same_relation"]
        marked = (evolve(near[0], meta={"first": True}), *near[1:])
        question = f"What do you think of {case.subject}?"
        sentiment = {
            "sign": "positive", "pos": [case.target_new], "pos_prompts": [question],
            "neg": [case.ground_truth], "neg_prompts": [question],
            "drawdown": {"pos": ["It is fine."], "pos_prompts": [near[0].prompt]},
        }  # fmt: skip
        found.append(evolve(case, locality={"neighborhood": marked}, meta={"sentiment": sentiment}))
    return found


# ------------------------------------------------------------------ check 1
def test_check_1_an_unedited_model_reads_as_before() -> None:
    """Locality exactly 1, divergence exactly 0, and every magnitude, score and perplexity what it was before."""
    requests = facts(4)
    evaluation = world().evaluate(requests, protocols=["gen_free", "tf_token"], metrics=ASKED)
    for name in ("gen_free.locality", "tf_token.locality"):
        assert evaluation[name].value == 1.0
    for name in ("qaedit.gen_free_first_locality", "qaedit.tf_token_first_locality"):
        assert evaluation[name].value == 1.0
    assert evaluation["convsent.drawdown"].value == 0.0 and evaluation["convsent.edit_success"].parts["topic"] == 1.0
    with_base = [name for name, result in evaluation.items() if "base" in result.parts]
    assert len(with_base) >= 12
    for name in with_base:
        assert evaluation[name].value == evaluation[name].parts["base"], name
    assert evaluation["counterfact.score"].value == evaluation["counterfact.base_score"].value
    assert 0 < evaluation["counterfact.neighborhood_magnitude"].value <= 1  # type: ignore[operator]
    assert evaluation["counterfact.efficacy_magnitude"].value < 0  # type: ignore[operator]
    assert evaluation["gold.gen_free_locality"].value == 1.0, "it knows its neighbours"
    # of what is to be refused likewise
    erased = [evolve(case, kind="erase", target_new="I don't know") for case in requests]
    kept = world().evaluate(erased, protocols=(), metrics=["sanitation"])
    assert kept["sanitation.locality"].value == 1.0 and kept["sanitation.success"].value == 0.0


def test_check_1_a_perfect_model_scores_one() -> None:
    """Asked what it knows, with what it does not know as the old answer."""
    requests = [
        evolve(each, target_new=each.ground_truth or "", ground_truth=each.target_new, portability={})
        for each in facts(4)
    ]
    evaluation = world().evaluate(requests, metrics=["counterfact", "errors"])
    for kind in ("efficacy", "paraphrase"):
        assert evaluation[f"counterfact.{kind}_score"].value == evaluation[f"counterfact.{kind}_accuracy"].value == 1.0
        assert evaluation[f"counterfact.{kind}_magnitude"].value > 0.9  # type: ignore[operator]
    assert evaluation["errors.failed"].value == evaluation["errors.over_long"].value == 0.0
    assert all(evaluation[f"errors.{name}"].value is None for name in CLASSES)


# ------------------------------------------------------------------ check 2
def test_check_2_entropy_scores_and_their_harmonic_mean() -> None:
    words = [*"abcabc"]
    assert [ngram_entropy(words, n) for n in (2, 3)] == [pytest.approx(1.5219, abs=5e-5), pytest.approx(1.5)]
    assert generation_entropy(words) == pytest.approx(1.5073, abs=5e-5)
    shares = {"efficacy": {"a": 0.9}, "paraphrase": {"a": 0.6}, "neighborhood": {"a": 0.75}}
    score = metric_result({"a": 0.0}, tag="t", case_parts=shares, statistics=("harmonic_mean",))
    assert 100 * (score.value or 0) == pytest.approx(72.97, abs=5e-3) == 100 * harmonic_mean([0.9, 0.6, 0.75])


def test_check_2_scores_on_hand_made_logits() -> None:
    """ES: of two edit prompts one prefers the new answer. NS: the true one is wanted, and preferred by one of two."""
    words = ["Paris", "Oslo", "Rome"]
    requests = [
        EditRequest(
            case_id=str(n), prompt=f"{n}?", target_new="Paris", ground_truth="Oslo",
            locality={"neighborhood": (Probe(prompt=f"near {n}?"),)},
        )
        for n in range(2)
    ]  # fmt: skip
    rows = {"0?": (0.6, 0.3), "1?": (0.2, 0.7), "near 0?": (0.6, 0.3), "near 1?": (0.1, 0.8)}
    logits = {prompt: [logits_for({"Paris": new, "Oslo": true}, words)] for prompt, (new, true) in rows.items()}
    model = HandMade(words, logits)
    found = CounterFactMetrics().evaluate(
        context=told("counterfact", requests=requests), requests=requests, base=model, edited=model
    )
    assert found["counterfact.efficacy_score"].cases == {"0": 1.0, "1": 0.0}
    assert found["counterfact.neighborhood_score"].cases == {"0": 0.0, "1": 1.0}
    assert found["counterfact.efficacy_magnitude"].value == pytest.approx((0.3 - 0.5) / 2, abs=1e-6)
    assert found["counterfact.neighborhood_magnitude"].value == pytest.approx((-0.3 + 0.7) / 2, abs=1e-6)


# ------------------------------------------------------------------ check 5
def test_check_5_the_topic_score_is_capped_and_an_edit_of_nothing_scores_one_half() -> None:
    sentiment, topic = edit_success(-1.0, -2.0, -50.0)
    assert topic == 1.0 and 0.5 < sentiment < 1.0
    assert edit_success(-2.0, -2.0, -2.0) == (0.5, 1.0)
    assert math.prod(edit_success(-2.0, -2.0, -2.0)) == 0.5


# ------------------------------------------------------------------ check 7
@pytest.mark.parametrize(
    ("output", "target", "old", "expected"),
    [
        ("Lon", "London", "Paris", MISSING),
        ("London France", "London", "Paris France", PARTIAL),
        ("\n", "London", "Paris", MEANINGLESS),
        ("", "London", "Paris", MEANINGLESS),
        ("banana", "London", "Paris", IRRELEVANT),
    ],
)
def test_check_7_fixtures_of_error_classes(output: str, target: str, old: str, expected: str) -> None:
    assert classify(output, [target], [old], "The capital is") == expected


SAID = st.lists(
    st.sampled_from(["London", "Lon", "Oslo", "the", "is", "banana", "!", "capital", "of", "Paris"]), max_size=5
).map(" ".join)


@given(said=st.lists(SAID, min_size=1, max_size=6))
def test_check_7_error_classes_partition_the_failures(said: list[str]) -> None:
    """Every answer is right, right and over-long, or in exactly one class."""
    requests = [
        EditRequest(case_id=str(n), prompt=f"{n}: the capital is", target_new="London", ground_truth="Paris")
        for n in range(len(said))
    ]
    base = HandMade(said={request.prompt: "Oslo" for request in requests})
    edited = HandMade(said={request.prompt: text for request, text in zip(requests, said, strict=True)})
    found: Any = ErrorMetrics().evaluate(
        context=told("errors", requests=requests), requests=requests, base=base, edited=edited
    )
    right = sum(exact_match(text, ["London"]) for text in said)
    over_long = sum(found["errors.over_long"].cases.values())
    count = found["errors.count"]
    assert right + over_long + count.value == len(said)
    assert sum(count.parts.get(name, 0) for name in CLASSES) == count.value
    for case, failed in found["errors.failed"].cases.items():
        classes = [found[f"errors.{name}"].cases.get(case, 0.0) for name in CLASSES]
        assert sum(classes) == failed and set(classes) <= {0.0, 1.0}
