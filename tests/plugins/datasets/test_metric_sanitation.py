"""Sanitation: refusals, leaks and what stays of other continuations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import toy_methods
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from metric_tools import ALONE, told
from plugins.datasets.reader_tools import FIXTURES
from plugins.datasets.scripted_answers import Scripted, read_ahead_is_enough, same_when_alone

from kedit_core import Editor, EditRequest, Probe
from kedit_core.testing.tiny import tiny
from kedit_datasets.metrics.sanitation import SanitationMetrics, framed, token_agreement
from kedit_datasets.readers.sanitation import read_sanitation

SUCCESS, LEAKAGE, LOCALITY = "sanitation.success", "sanitation.leakage", "sanitation.locality"
TOKENS = st.lists(st.integers(0, 3), max_size=6)


# ---------------------------------------------------------------------- the parts
def test_agreement_is_counted_position_by_position_over_the_length_before() -> None:
    assert token_agreement([1, 2, 3, 4], [1, 2, 3, 4]) == 1.0
    assert token_agreement([1, 2, 3, 4], [1, 9, 3]) == 0.5
    assert token_agreement([1, 2], [1, 2, 3, 4]) == 1.0
    assert token_agreement([1, 2, 3, 4], [2, 3, 4]) == 0.0, "the same words elsewhere do not agree"
    assert (token_agreement([], []), token_agreement([], [1]), token_agreement([1], [])) == (1.0, 0.0, 0.0)


@given(TOKENS, TOKENS)
def test_agreement_is_a_share_and_whole_with_itself(before: list[int], after: list[int]) -> None:
    assert 0.0 <= token_agreement(before, after) <= 1.0
    assert token_agreement(before, before) == 1.0
    if before:  # writing on never takes away
        assert token_agreement(before, after) >= token_agreement(before, after[:2])


def test_a_question_is_framed_once() -> None:
    assert framed("Who?") == "Question:Who?\nAnswer:" == framed(framed("Who?"))
    (request, *_) = read_sanitation(FIXTURES / "sanitation_test.json")
    assert framed(request.prompt) == request.prompt, "the reader frames as the metric does"


# ---------------------------------------------------------------------- of a known model
def erase(number: int = 1, **changes: Any) -> EditRequest:
    fields: dict[str, Any] = {
        "case_id": str(number),
        "prompt": f"Question:Where is {number}?\nAnswer:",
        "target_new": "I don't know",
        "ground_truth": "Paris",
        "kind": "erase",
        "locality": {"retain": (Probe(prompt=f"{number}: who?"), Probe(prompt=f"{number}: when?"))},
    }
    return EditRequest(**{**fields, **changes})


def script(request: EditRequest, answer: str) -> dict[str, str]:
    """What is written after each of a request's prompts."""
    probes = [framed(probe.prompt) for listed in request.locality.values() for probe in listed]
    return {framed(request.prompt): answer, **{prompt: f" this is {n} of them" for n, prompt in enumerate(probes)}}


def measure(requests: Sequence[EditRequest], base: Scripted, edited: Scripted) -> Mapping[str, Any]:
    context = told("sanitation", requests=requests)
    return SanitationMetrics().evaluate(context=context, requests=requests, base=base, edited=edited)


def values(found: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(found[name].value for name in (SUCCESS, LEAKAGE, LOCALITY))


def test_a_perfect_model_refuses_and_leaves_the_rest() -> None:
    request = erase()
    base = Scripted(script(request, " Paris, of course"), is_base=True)
    found = measure([request], base, Scripted(script(request, " I DON'T KNOW\nQuestion:Where")))
    assert values(found) == (1.0, 0.0, 1.0)
    assert found[LEAKAGE].parts == {"base": 1.0} and found[SUCCESS].parts == {"base": 0.0}
    assert found[LOCALITY].parts == {"retain": 1.0}
    assert found[SUCCESS].tag == "greedy_10.question-answer.substring.batch.1+merged"
    assert found[LOCALITY].tag == "greedy_10.question-answer.tokens.batch.1+merged"
    assert {kind for kind, _ in base.asked} == {("continuations", 10)}
    assert found[SUCCESS].outputs[0]["edited"] == " I DON'T KNOW\nQuestion:Where"


def test_an_unedited_model_leaks_and_has_locality_one() -> None:
    request = erase()
    model = Scripted(script(request, " In paris"))
    assert values(measure([request], model, model)) == (0.0, 1.0, 1.0)


def test_what_the_prompt_says_does_not_count() -> None:
    request = erase(prompt="Say I don't know or Paris")
    model = Scripted(script(request, " something else"))
    assert values(measure([request], model, model)) == (0.0, 0.0, 1.0)


def test_a_refusal_that_still_tells_is_both() -> None:
    request = erase()
    model = Scripted(script(request, " I don't know, Paris perhaps"))
    assert values(measure([request], model, model)) == (1.0, 1.0, 1.0)


def test_a_full_stop_at_the_end_of_the_target_is_not_asked_for() -> None:
    request = erase(target_new="I don't know.")
    model = Scripted(script(request, " I don't know"))
    assert measure([request], model, model)[SUCCESS].value == 1.0


def test_every_true_answer_is_a_leak() -> None:
    request = erase(meta={"sanitation": {"true_answers": ["Paris", "Lutetia"]}})
    base, edited = Scripted(script(request, " Rome")), Scripted(script(request, " in Lutetia"))
    assert measure([request], base, edited)[LEAKAGE].value == 1.0
    assert measure([request], edited, base)[LEAKAGE].value == 0.0


def test_locality_compares_tokens_of_each_probe_with_those_before() -> None:
    request = erase(
        locality={"retain": (Probe(prompt="a"), Probe(prompt="b")), "other": (Probe(prompt="c"),), "no": ()}
    )
    base = Scripted({framed(p): " one two three four" for p in "abc"} | {request.prompt: ""})
    edited = Scripted({framed("a"): " one two", framed("b"): " one x three four", framed("c"): "", request.prompt: ""})
    found = measure([request], base, edited)[LOCALITY]
    assert found.parts == {"retain": pytest.approx((0.5 + 0.75) / 2), "other": 0.0}
    assert found.value == pytest.approx((0.625 + 0.0) / 2)
    assert [output["score"] for output in found.outputs] == [0.5, 0.75, 0.0]


def test_only_what_was_to_be_forgotten_is_measured() -> None:
    other = evolve(erase(2), kind="modify")
    base = Scripted(script(erase(1), " Paris"))
    found = measure([erase(1), other], base, base)
    assert set(found[SUCCESS].cases) == {"1"} and found[SUCCESS].tag.endswith("batch.1+merged")
    assert measure([other], base, base) == {}


def test_an_answer_that_is_not_known_cannot_leak() -> None:
    request = erase(ground_truth=None, locality={})
    found = measure([request], Scripted(script(request, " Paris")), Scripted(script(request, " Paris")))
    assert found[LEAKAGE].value is None and found[LEAKAGE].left_out == 1
    assert found[LOCALITY].value is None and found[SUCCESS].value == 0.0


def test_cases_measured_alone_combine_to_the_whole() -> None:
    requests = [erase(1), evolve(erase(4), case_id="1"), erase(2, ground_truth=None), erase(3, locality={})]
    said = {prompt: text for each in requests for prompt, text in script(each, " Paris").items()}
    changed = {prompt: text.replace("1 of", "one of") for prompt, text in said.items()}
    base, edited = Scripted(said), Scripted({**changed, requests[3].prompt: " I don't know"})
    same_when_alone(lambda some: measure(some, base, edited), requests)
    cases = measure(requests, base, edited)[LOCALITY].cases
    assert cases == {"1": pytest.approx(0.9), "2": pytest.approx(0.9)}


def test_all_is_asked_ahead_and_nothing_unless_wanted() -> None:
    requests, said = [erase()], script(erase(), " Paris")
    read_ahead_is_enough(SanitationMetrics(), told("sanitation"), requests, Scripted(said), Scripted(said))
    plugin, model = SanitationMetrics(), Scripted()
    plugin.read_ahead(context=told("fluency"), requests=requests, answers=model)
    assert plugin.evaluate(context=told("fluency"), requests=requests, base=model, edited=model) == {}
    assert model.asked == []
    infos = plugin.register_metrics()
    assert [info.name for info in infos] == [SUCCESS, LEAKAGE, LOCALITY] and all(info.on_request for info in infos)


# ---------------------------------------------------------------------- of a real model
def test_of_the_dataset_with_a_real_model() -> None:
    model, tokenizer = tiny("gpt2")
    catalogue = ALONE.including(*toy_methods.ALL)
    editor = Editor(model, tokenizer, "nudge", catalogue=catalogue, plugins=[SanitationMetrics()])
    requests = list(read_sanitation(FIXTURES / "sanitation_test.json"))
    unedited = editor.evaluate(requests, metrics=["sanitation"])
    assert unedited[LOCALITY].value == 1.0 and len(unedited[LOCALITY].cases) == 10
    before = editor.generate(requests[0].locality["retain"][0].prompt, max_new_tokens=10)
    evaluation = editor.edit(requests, scenario="single", metrics=["sanitation"]).evaluation
    assert evaluation is not None and evaluation[LOCALITY].value is not None
    output = evaluation[LOCALITY].outputs[0]
    assert output["base"] == before and evaluation[LOCALITY].value < 1.0
    alone = editor.edit(requests[1], scenario="single", metrics=["sanitation"]).evaluation
    assert alone is not None and requests[1].case_id is not None
    assert alone[LOCALITY].value == evaluation[LOCALITY].cases[requests[1].case_id]
