from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import toy_methods
from hypothesis import given
from hypothesis import strategies as st
from metric_tools import ALONE, HandMade, told
from plugins.datasets.reader_tools import FIXTURES

from kedit_core import Editor, EditRequest, Probe
from kedit_core.errors import MissingExtraError
from kedit_core.evaluation import Answers, Evaluation, combine
from kedit_core.testing.tiny import tiny
from kedit_datasets.metrics.fluency import NAME, FluencyMetrics
from kedit_datasets.metrics.ngrams import generation_entropy, ngram_entropy, repeated_share, sentences, word_tokenizer
from kedit_datasets.metrics.sampling import clean
from kedit_datasets.readers.sanitation import read_sanitation

WORDS = st.lists(st.sampled_from("abcd"), max_size=12)


# ---------------------------------------------------------------------- entropies
def test_the_check_value_of_the_definition() -> None:
    words = list("abcabc")
    assert ngram_entropy(words, 2) == pytest.approx(1.5219, abs=5e-5)
    assert ngram_entropy(words, 3) == pytest.approx(1.5, abs=1e-12)
    assert generation_entropy(words) == pytest.approx(1.5073, abs=5e-5)


def plain_entropy(words: list[str], n: int) -> float:
    """The definition, n-gram by n-gram, counted by going through the text again for each."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    shares = [sum(gram == other for other in grams) / len(grams) for gram in set(grams)]
    return -sum(share * math.log(share) / math.log(2) for share in shares)


@given(WORDS, st.integers(1, 4))
def test_entropies_are_the_definitions(words: list[str], n: int) -> None:
    found = ngram_entropy(words, n)
    if len(words) < n:
        assert found is None
    else:
        assert found == pytest.approx(plain_entropy(words, n), abs=1e-12)


@given(WORDS)
def test_generation_entropy_weighs_two_and_three(words: list[str]) -> None:
    if len(words) < 3:
        assert generation_entropy(words) is None
    else:
        expected = plain_entropy(words, 2) / 3 + 2 * plain_entropy(words, 3) / 3
        assert generation_entropy(words) == pytest.approx(expected, abs=1e-12)


def test_repeated_share_counts_what_was_there_before() -> None:
    assert repeated_share(list("abababab"), 3) == pytest.approx(4 / 6)
    assert repeated_share(list("abcd"), 3) == 0.0
    assert repeated_share(["a"], 3) == 0.0


# ---------------------------------------------------------------------- texts and words
def test_sentences_end_at_full_stops_that_end_one() -> None:
    text = "St. Louis lies\n on the river. It has 3.5 million\npeople! Really? J. Smith said so."
    assert sentences(text) == [
        "St. Louis lies on the river.",
        "It has 3.5 million people! Really? J. Smith said so.",
    ]
    assert sentences(" \n") == []
    assert sentences("no stop") == ["no stop"]


def test_words_are_nltks() -> None:
    pytest.importorskip("nltk", reason="the extra fluency is not installed")
    words = word_tokenizer()
    found = words("Oslo isn't big. It's (quite) \"old\", St. Olav said in 3.5 hours. No")
    expected = "Oslo is n't big . It 's ( quite ) `` old '' , St. Olav said in 3.5 hours . No"
    assert found == expected.split()
    assert generation_entropy(words("a b c a b c")) == pytest.approx(1.5073, abs=5e-5)


def test_without_nltk_the_user_is_told_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if each == "nltk" or each.startswith("nltk.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nltk", None)
    model = HandMade()
    with pytest.raises(MissingExtraError, match=r"pip install 'kedit-datasets\[fluency\]'"):
        FluencyMetrics().read_ahead(context=told("fluency"), requests=[fact()], answers=model)
    assert model.asked == []


def test_texts_are_cleaned_as_upstream_does() -> None:
    assert clean("ﬁne\n\nCafe\u0301 ½<|endoftext|>.") == "fine Cafe\u0301 1\u20442."
    assert clean("caf\u00e9") == "cafe\u0301"
    assert clean("a<s>b</s>", {"<s>", "</s>"}) == "ab"


# ---------------------------------------------------------------------- the metric
def fact(number: int = 1, **changes: Any) -> EditRequest:
    return EditRequest(**{"case_id": str(number), "prompt": f"{number} Oslo is", "target_new": "old", **changes})


def measure(facts: list[EditRequest], base: HandMade, edited: HandMade, **more: Any) -> Any:
    context = told("fluency", **{"requests": facts, **more})
    plugin = FluencyMetrics(words=str.split)
    return plugin.evaluate(context=context, requests=facts, base=base, edited=edited)[NAME]


def test_prompt_and_continuation_are_one_text() -> None:
    request = fact()
    edited = HandMade(written={request.prompt: " 1 Oslo is</s>"})
    base = HandMade(written={request.prompt: " a town up north"})
    result = measure([request], base, edited)
    assert result.value == pytest.approx(1.5073, abs=5e-5)  # a b c a b c
    assert result.parts["base"] == pytest.approx(generation_entropy(list("abcdefg")), abs=1e-12)
    assert result.unit == "bits"
    assert result.tag == "sample_top5_total100.edit-prompts.GE.batch.1+merged"
    (output,) = result.outputs
    assert output["edited"] == "1 Oslo is 1 Oslo is" and output["base"] == "1 Oslo is a town up north"
    assert edited.asked == [("sample", 100, 5, 0, request.prompt)]


def test_an_encoder_decoders_text_does_not_stick_to_its_prompt() -> None:
    request = fact()
    model = HandMade(written={request.prompt: "1 Oslo is"})
    result = measure([request], model, model, adapter=type("View", (), {"is_encoder_decoder": True}))
    assert result.outputs[0]["edited"] == "1 Oslo is 1 Oslo is"


def test_generation_prompts_are_taken_where_there_are_some_and_never_mixed() -> None:
    with_openings, without = fact(1, generation_prompts=("Oslo has", "In Oslo")), fact(2)
    model = HandMade(written={"Oslo has": " Oslo has Oslo", "In Oslo": " a b c d", "2 Oslo is": " old"})
    result = measure([with_openings, without], model, model)
    assert result.tag == "sample_top5_total100.generation-prompts.GE.batch.2+merged"
    assert result.left_out == 1 and set(result.cases) == {"1"}
    assert [output["prompt"] for output in result.outputs] == ["Oslo has", "In Oslo"]
    entropies = [output["edited_entropy"] for output in result.outputs]
    assert entropies[0] != entropies[1] and result.value == pytest.approx(sum(entropies) / 2)
    # a case that is evaluated alone goes by the run
    alone = measure([without], model, model, requests=[with_openings, without])
    assert alone.value is None and alone.left_out == 1
    assert alone.tag == "sample_top5_total100.generation-prompts.GE.batch.1+merged"


def test_of_what_is_to_be_erased_texts_begin_with_locality_prompts() -> None:
    kept = (Probe(prompt="Question:Who?\nAnswer:"), Probe(prompt="Where?"))
    erase, bare = fact(1, kind="erase", locality={"retain": kept}), fact(2, kind="erase")
    model = HandMade(written={"Question:Who?\nAnswer:": " a b c d", "Question:Where?\nAnswer:": " x y z"})
    result = measure([erase, bare], model, model)
    assert result.tag == "sample_top5_total100.locality-prompts.GE.batch.2+merged"
    assert set(result.cases) == {"1"} and result.left_out == 1
    assert [output["edited"] for output in result.outputs] == [
        "Question:Who?\nAnswer: a b c d",
        "Question:Where?\nAnswer: x y z",
    ]
    alone = measure([bare], model, model, requests=[erase, bare])
    assert alone.value is None and alone.left_out == 1
    # one edit that erases nothing, and the run is as any other; openings come first
    other = HandMade(written={"1 Oslo is": " a b c", "2 Oslo is": " d e f", "In Oslo": " g h i"})
    assert ".edit-prompts." in measure([erase, fact(2)], other, other).tag
    assert ".edit-prompts." in measure([bare], other, other).tag
    opened = fact(1, kind="erase", locality={"retain": kept}, generation_prompts=("In Oslo",))
    assert ".generation-prompts." in measure([opened], other, other).tag


def test_of_sanitation_all_that_is_retained_is_written_on() -> None:
    requests = list(read_sanitation(FIXTURES / "sanitation_test.json"))
    probes = [probe.prompt for request in requests for probe in request.locality["retain"]]
    model = HandMade(written=dict.fromkeys(probes, " one two three"))
    result = measure(requests, model, model)
    assert len(result.cases) == 10 and [output["prompt"] for output in result.outputs] == probes


def test_short_texts_are_skipped_and_counted() -> None:
    short, long = fact(1, prompt="Oslo"), fact(2)
    model = HandMade(written={"Oslo": "", long.prompt: " old"})
    result = measure([short, long], model, model)
    assert set(result.cases) == {"2"} and result.left_out == 1
    assert result.outputs[0]["edited_entropy"] is None


def test_cases_apart_combine_to_what_they_give_together() -> None:
    requests = [fact(1), fact(2), fact(3)]
    edited = HandMade(written={"1 Oslo is": " a a a", "2 Oslo is": " a b c d", "3 Oslo is": ""})
    base = HandMade(written={request.prompt: " x y z x" for request in requests})
    whole = measure(requests, base, edited, scenario="single")
    apart = [
        Evaluation(metrics={NAME: measure([each], base, edited, scenario="single", requests=requests)})
        for each in requests
    ]
    assert combine(apart)[NAME] == whole


def test_nothing_is_asked_where_it_is_not_wanted() -> None:
    model, plugin = HandMade(), FluencyMetrics(words=str.split)
    plugin.read_ahead(context=told("errors"), requests=[fact()], answers=model)
    assert plugin.evaluate(context=told("errors"), requests=[fact()], base=model, edited=model) == {}
    assert model.asked == []
    (info,) = plugin.register_metrics()
    assert info.on_request and info.group == "fluency"


# ---------------------------------------------------------------------- a real model
CATALOGUE = ALONE.including(*toy_methods.ALL)
FACTS = [fact(1, prompt="The capital of France is", subject="France", target_new="Rome"), fact(2, target_new="Rome")]


def test_an_unedited_models_entropy_is_the_bases_and_follows_from_the_seed() -> None:
    model, tokenizer = tiny("gpt2")
    results = [
        Editor(model, tokenizer, seed=seed, catalogue=ALONE, plugins=[FluencyMetrics(words=str.split)]).evaluate(
            FACTS, metrics=["fluency"]
        )[NAME]
        for seed in (0, 0, 1)
    ]
    assert results[0].value == results[0].parts["base"] and (results[0].value or 0) > 0
    assert results[0] == results[1]
    assert results[0].outputs != results[2].outputs
    editor = Editor(model, tokenizer)
    answers = Answers(model, editor.adapter, editor.tokens)
    for output, request in zip(results[0].outputs, FACTS, strict=True):
        (written,) = answers.sample([request.prompt], total_tokens=100, k=5, seed=0)
        assert output["edited"] == clean(request.prompt + written) != request.prompt


def test_an_edit_is_measured_case_by_case_as_together() -> None:
    model, tokenizer = tiny("gpt2")
    plugin = FluencyMetrics(words=str.split)
    editor = Editor(model, tokenizer, method="nudge", catalogue=CATALOGUE, plugins=[plugin])
    result = editor.edit(FACTS, scenario="single", metrics=["fluency"]).evaluation
    assert result is not None and set(result[NAME].cases) == {"1", "2"}
    patch = editor.edit(FACTS[0], metrics=["fluency"])
    assert patch.evaluation is not None
    alone = patch.evaluation[NAME].outputs[0]
    assert alone == result[NAME].outputs[0]
    assert alone["edited"] != alone["base"]
