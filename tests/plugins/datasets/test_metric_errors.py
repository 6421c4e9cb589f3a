from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import toy_methods
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from metric_tools import ALONE, HandMade, told

from kedit_core import Editor, EditRequest, Probe
from kedit_core.evaluation import Evaluation, combine
from kedit_core.testing.tiny import tiny
from kedit_datasets.metrics.errors import EXAMPLES, ErrorMetrics, examples
from kedit_datasets.metrics.failures import CLASSES, IRRELEVANT, MEANINGLESS, MISSING, PARTIAL, classify
from kedit_datasets.metrics.words import content_words, meaning_of

PROMPT = "The capital of Norway is"


# ---------------------------------------------------------------------- classes
@pytest.mark.parametrize(
    ("output", "target", "old", "expected"),
    [
        # the sheet's
        ("Lon", "London", "Oslo", MISSING),
        ("London France", "London", "Paris France", PARTIAL),
        ("\n", "London", "Oslo", MEANINGLESS),
        ("", "London", "Oslo", MEANINGLESS),
        ("banana", "London", "Oslo", IRRELEVANT),
        # nothing is said
        ("... !?", "London", "Oslo", MEANINGLESS),
        ("it is the", "London", "Oslo", MEANINGLESS),
        ("the capital of Norway", "London", "Oslo", MEANINGLESS),
        ("ha ha ha ha ha ha", "London", "Oslo", MEANINGLESS),
        ("London or Oslo or London or Oslo or London or Oslo or London or Oslo", "Rome", "Oslo", MEANINGLESS),
        ("\N{RIGHTWARDS ARROW}", "London", "Oslo", MEANINGLESS),
        # both
        ("New Oslo", "New York", "Oslo", PARTIAL),
        # a part
        ("York", "New York", "Oslo", MISSING),
        ("New Delhi", "New York", "Oslo", MISSING),
        ("New Y", "New York", "Oslo", MISSING),
        ("L", "London", "Oslo", MISSING),  # short, but all that was said is the answer's beginning
        ("Who", "The Who", "Oslo", MEANINGLESS),  # no content word
        # a word of both answers is no word of the old one
        ("City", "New York City", "Mexico City", MISSING),
        # something else
        ("Oslo", "London", "Oslo", IRRELEVANT),
        ("Lo and behold", "London", "Oslo", IRRELEVANT),  # two letters are no part
        ("Lond Oslo", "London", "Oslo", IRRELEVANT),
        ("York, a new one", "New York", "Oslo", IRRELEVANT),  # no word is missing
    ],
)
def test_fixtures(output: str, target: str, old: str, expected: str) -> None:
    assert classify(output, [target], [old], PROMPT) == expected


def test_the_closest_of_several_answers_decides_and_words_of_any_are_new() -> None:
    assert classify("York", ["NYC", "New York"], ["Oslo"], PROMPT) == MISSING
    assert classify("York Oslo", ["NYC", "New York"], ["Oslo"], PROMPT) == PARTIAL
    assert classify("Oslo", ["NYC", "New Oslo"], ["Oslo"], PROMPT) == MISSING


def test_old_answers_are_the_true_one_and_the_bases() -> None:
    assert classify("London Bergen", ["London"], ["Oslo"], PROMPT) == IRRELEVANT
    assert classify("London Bergen", ["London"], ["Oslo", "Bergen"], PROMPT) == PARTIAL


def test_content_words_are_without_function_words_and_signs() -> None:
    assert content_words("It isn't the \N{RIGHTWARDS ARROW} Tower of 3.5 London!") == ["tower", "35", "london"]
    assert meaning_of("The Who") == frozenset({"who"})
    assert meaning_of("No") == frozenset({"no"})


TEXTS = st.lists(
    st.sampled_from(["London", "Lon", "Oslo", "New", "York", "the", "is", "!", "capital", "x", "\n", "Norway"]),
    max_size=9,
).map(" ".join)
ANSWERS = st.lists(TEXTS.filter(lambda text: any(c.isalnum() for c in text)), min_size=1, max_size=3)


@given(TEXTS, ANSWERS, st.lists(TEXTS, max_size=2))
def test_every_output_has_one_class_that_follows_from_the_texts_alone(
    output: str, targets: list[str], old: list[str]
) -> None:
    found = classify(output, targets, old, PROMPT)
    assert found in CLASSES
    assert classify(output.upper(), list(reversed(targets)), list(reversed(old)), PROMPT) == found


# ---------------------------------------------------------------------- the metric
def fact(number: int = 1, **changes: Any) -> EditRequest:
    return EditRequest(
        **{
            "case_id": str(number),
            "prompt": f"{number} The capital of Norway is",
            "target_new": "New York",
            "ground_truth": "Oslo",
            "aliases": ("NYC",),
            **changes,
        }
    )


def measure(facts: Sequence[EditRequest], base: HandMade, edited: HandMade, **more: Any) -> dict[str, Any]:
    context = told("errors", requests=facts, **more)
    results = ErrorMetrics().evaluate(context=context, requests=facts, base=base, edited=edited)
    return {name.partition(".")[2]: result for name, result in results.items()}


def saying(facts: Sequence[EditRequest], *answers: str) -> HandMade:
    return HandMade(said={each.prompt: answer for each, answer in zip(facts, answers, strict=True)})


def test_a_perfect_oracle_has_no_failure() -> None:
    facts = [fact(1), fact(2)]
    results = measure(facts, saying(facts, " Oslo", " Oslo"), saying(facts, " New York.", " the NYC\n"))
    assert results["failed"].value == 0.0 and results["over_long"].value == 0.0
    assert all(results[name].value is None for name in (*CLASSES, "unchanged"))
    assert results["count"].value == 0.0 and set(results["count"].parts.values()) == {0.0}


def test_shares_counts_and_what_is_no_failure() -> None:
    facts = [fact(number) for number in range(8)]
    said = [" NYC", " It is New York, I think", " Oslo", " Bergen", " York", " York in Oslo", "\n", " Bergen"]
    base = saying(facts, *[" Oslo"] * 7, " Bergen")
    results = measure(facts, base, saying(facts, *said))
    assert results["failed"].value == 6 / 8
    assert results["over_long"].value == 1 / 8
    counts = {"meaningless": 1, "partial": 1, "missing": 1, "irrelevant": 3, "unchanged": 2}
    assert results["count"].value == 6
    assert results["count"].parts == counts and results["count"].unit == "outputs"
    for name, count in counts.items():
        assert results[name].value == pytest.approx(count / 6)
        assert len(results[name].outputs) == count
    assert sum(results[name].value for name in CLASSES) == pytest.approx(1.0)
    assert {output["case"] for output in results["unchanged"].outputs} == {"2", "7"}
    assert [output["edited"] for output in results["over_long"].outputs] == ["It is New York, I think"]
    assert results["failed"].tag == "gen_free.question-only.EM.batch.8+merged"


def test_rephrases_and_what_follows_are_judged_by_their_own_answers() -> None:
    request = fact(
        rephrase_prompts=("Norway's capital is",),
        locality={"near": (Probe(prompt="never asked", answers=("x",)),)},
        portability={"hop": (Probe(prompt="Its river is the", answers=("Hudson River",)), Probe(prompt="unknown"))},
    )
    said = {request.prompt: " New York", "Norway's capital is": " Oslo", "Its river is the": " Hudson. It"}
    base = {request.prompt: " Oslo", "Norway's capital is": " Oslo", "Its river is the": " Glomma"}
    results = measure([request], HandMade(said=base), HandMade(said=said))
    assert results["failed"].parts == {"reliability": 0.0, "generalization": 1.0, "portability": 1.0}
    assert results["failed"].value == pytest.approx(2 / 3)
    assert results["missing"].parts == {"generalization": 0.0, "portability": 1.0}
    assert results["unchanged"].value == 0.5
    assert results["failed"].left_out == 1
    # the fact's old answer is not that of what follows from it
    said["Its river is the"] = " Hudson in Oslo"
    assert measure([request], HandMade(said=base), HandMade(said=said))["irrelevant"].parts["portability"] == 0.0
    assert measure([request], HandMade(said=base), HandMade(said=said))["missing"].parts["portability"] == 1.0


def test_special_tokens_are_not_said() -> None:
    facts = [fact()]
    results = measure(facts, saying(facts, " Oslo"), saying(facts, "</s><|endoftext|>"))
    assert results["meaningless"].value == 1.0
    assert measure(facts, saying(facts, " Oslo"), saying(facts, " NYC</s>"))["failed"].value == 0.0


ANSWERED = st.lists(
    st.sampled_from([" New York", " York", " Oslo", "\n", " York Oslo", " so New York it is", " Rome"]),
    min_size=1,
    max_size=8,
)


@given(ANSWERED)
def test_classes_partition_the_failures_and_cases_apart_combine(said: list[str]) -> None:
    facts = [evolve(fact(number), case_id=str(number // 2)) for number in range(len(said))]
    base, edited = saying(facts, *[" Oslo"] * len(said)), saying(facts, *said)
    whole = measure(facts, base, edited, scenario="single")
    failed = whole["count"].value
    parts = whole["count"].parts
    assert sum(parts[name] for name in CLASSES) == failed
    assert parts["unchanged"] <= parts["irrelevant"]
    for case in whole["irrelevant"].cases:
        assert sum(whole[name].cases[case] for name in CLASSES) == pytest.approx(1.0)
    assert sum(len(whole[name].outputs) for name in CLASSES) == failed
    cases = dict.fromkeys(each.case_id for each in facts)
    apart = [
        Evaluation(metrics=measure([f for f in facts if f.case_id == case], base, edited, scenario="single"))
        for case in cases
    ]
    for name, result in combine(apart).metrics.items():
        assert evolve(result, outputs=()) == evolve(whole[name], outputs=())
        assert examples(result) == examples(whole[name])


def test_examples_are_drawn_by_the_seed_however_cases_are_put_together() -> None:
    facts = [fact(number) for number in range(60)]
    base, edited = saying(facts, *[" Oslo"] * 60), saying(facts, *[" Bergen"] * 60)
    whole = measure(facts, base, edited)["irrelevant"]
    drawn = [output["case"] for output in whole.outputs]
    assert len(drawn) == EXAMPLES == len(set(drawn))
    assert drawn != [str(number) for number in range(EXAMPLES)]
    apart = [Evaluation(metrics=measure([each], base, edited)) for each in facts]
    combined = combine(apart)["irrelevant"]
    assert len(combined.outputs) == 60
    assert [output["case"] for output in examples(combined)] == drawn
    assert [output["case"] for output in examples(combined, 3)] == drawn[:3]
    other = measure(facts, base, edited, seed=1)["irrelevant"]
    assert [output["case"] for output in other.outputs] != drawn


def test_all_is_asked_ahead_and_nothing_where_it_is_not_wanted() -> None:
    facts = [fact(portability={"hop": (Probe(prompt="unknown"),)})]
    ahead, base, edited = (saying(facts, " Oslo") for _ in range(3))
    ErrorMetrics().read_ahead(context=told("errors"), requests=facts, answers=ahead)
    measure(facts, base, edited)
    assert ahead.asked == base.asked == edited.asked
    quiet = HandMade()
    ErrorMetrics().read_ahead(context=told("fluency"), requests=facts, answers=quiet)
    assert ErrorMetrics().evaluate(context=told(), requests=facts, base=quiet, edited=quiet) == {}
    assert quiet.asked == []
    assert {f"errors.{name}" for name in measure(facts, base, edited)} == {
        info.name for info in ErrorMetrics().register_metrics() if info.on_request
    }


# ---------------------------------------------------------------------- a real model
def test_failures_are_those_of_free_generation() -> None:
    model, tokenizer = tiny("gpt2")
    catalogue = ALONE.including(*toy_methods.ALL)
    editor = Editor(model, tokenizer, method="nudge", catalogue=catalogue, plugins=[ErrorMetrics()])
    facts = [fact(number, aliases=(), target_new="Rome") for number in range(3)]
    for scenario in ("single", "batch"):
        evaluation = editor.edit(facts, scenario=scenario, metrics=["errors"]).evaluation
        assert evaluation is not None
        right = evaluation["gen_free.reliability"].value
        over_long, failed = evaluation["errors.over_long"].value, evaluation["errors.failed"].value
        assert right + over_long + failed == pytest.approx(1.0)
        assert failed > 0 and sum(evaluation[f"errors.{name}"].value for name in CLASSES) == pytest.approx(1.0)
        assert evaluation["errors.count"].value == failed * 3
        editor.restore()
