from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_methods
from hypothesis import given
from hypothesis import strategies as st
from metric_tools import ALONE, HandMade, told

from kedit_core import Editor, EditRequest
from kedit_core.errors import InputError, RequirementError
from kedit_core.evaluation import Evaluation, combine
from kedit_core.testing.tiny import tiny
from kedit_datasets.metrics.reference import NAME, ROLES, ReferenceMetrics, read_snippets
from kedit_datasets.metrics.tfidf import TfIdf, read_tfidf

VOCABULARY = {"paris": 0, "tower": 1, "seine": 2, "oslo": 3, "fjord": 4, "23": 5, "été": 6}
IDF = [1.5, 2.0, 3.25, 1.25, 4.0, 1.0, 2.75]
SNIPPETS = [
    {
        "relation_id": "P36",
        "target_id": "Q90",
        "samples": [{"name": "A", "text": "Paris has a tower."}, {"name": "B", "text": "The Seine: PARIS, paris"}],
    },
    {"relation_id": "P36", "target_id": "Q585", "samples": [{"name": "C", "text": "Oslo, fjord"}]},
    {"relation_id": "P36", "target_id": "Q1", "samples": [{"name": "D", "text": "not one word of it"}]},
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The three published files in small, by role."""
    found = {role: tmp_path / name for role, name in ROLES.items()}
    found["attribute_snippets"].write_text(json.dumps(SNIPPETS), encoding="utf-8")
    found["tfidf_vocab"].write_text(json.dumps(VOCABULARY), encoding="utf-8")
    np.save(found["tfidf_idf"], np.array(IDF))
    return found


def plain_cosine(left: str, right: str) -> float:
    """The definition, word by word."""

    def weights(text: str) -> dict[str, float]:
        cleaned = "".join(c if c.isalnum() or c == "_" else " " for c in text.lower())
        counts = Counter(word for word in cleaned.split() if len(word) > 1 and word in VOCABULARY)
        return {word: count * IDF[VOCABULARY[word]] for word, count in counts.items()}

    a, b = weights(left), weights(right)
    lengths = math.sqrt(sum(v * v for v in a.values())) * math.sqrt(sum(v * v for v in b.values()))
    return sum(a[word] * b.get(word, 0.0) for word in a) / lengths if lengths else 0.0


# ---------------------------------------------------------------------- TF-IDF
TEXTS = st.lists(
    st.sampled_from(["Paris", "paris,", "tower", "the", "a", "Seine!", "23", "2", "Été", "fjord-Oslo", "\n"]),
    max_size=12,
).map(" ".join)


@given(TEXTS, TEXTS)
def test_cosines_are_the_definitions(left: str, right: str) -> None:
    weights = TfIdf(VOCABULARY, np.array(IDF))
    found = weights.vector(left).cosine(weights.vector(right))
    assert found == pytest.approx(plain_cosine(left, right), abs=1e-12)
    assert found == pytest.approx(weights.vector(right).cosine(weights.vector(left)), abs=1e-15)


def test_vectors_are_scikit_learns() -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text", reason="the extra reference is not installed")
    documents = [sample["text"] for record in SNIPPETS for sample in record["samples"]]  # type: ignore[attr-defined]
    fitted = text.TfidfVectorizer().fit(documents)
    weights = TfIdf({word: int(column) for word, column in fitted.vocabulary_.items()}, fitted.idf_)
    for document in [*documents, "The tower, the TOWER of x Paris_ 23", "nothing known"]:
        expected = fitted.transform([document]).toarray()[0]
        vector = weights.vector(document)
        found = np.zeros(len(expected))
        found[vector.columns] = vector.weights
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_files_that_do_not_belong_together_are_refused(files: dict[str, Path]) -> None:
    assert read_tfidf(files["tfidf_idf"], files["tfidf_vocab"]).idf.tolist() == IDF
    np.save(files["tfidf_idf"], np.array(IDF[:-1]))
    with pytest.raises(InputError, match="7 words, which are not the 6 columns"):
        read_tfidf(files["tfidf_idf"], files["tfidf_vocab"])
    np.save(files["tfidf_idf"], np.array([{"code": "that would run"}]), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read as a numpy array"):
        read_tfidf(files["tfidf_idf"], files["tfidf_vocab"])
    np.save(files["tfidf_idf"], np.array([IDF]))
    with pytest.raises(InputError, match="no one-dimensional array"):
        read_tfidf(files["tfidf_idf"], files["tfidf_vocab"])
    np.save(files["tfidf_idf"], np.array(IDF))
    for wrong in ("[]", '{"paris": "0"}', '{"paris": true}'):
        files["tfidf_vocab"].write_text(wrong, encoding="utf-8")
        with pytest.raises(InputError, match="no object of word -> column"):
            read_tfidf(files["tfidf_idf"], files["tfidf_vocab"])


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"relation_id": "P1", "samples": []}, "record 1 of .* has no relation_id, target_id"),
        ({"relation_id": "P1", "target_id": "Q1", "samples": [{"name": "x"}]}, "record 1 of"),
        ({"relation_id": "P1", "target_id": "Q1", "samples": None}, "record 1 of"),
        ("P1", "record 1 of"),
        ({"relation_id": 1, "target_id": "Q1", "samples": []}, "something else where ids and texts"),
        ({"relation_id": "P1", "target_id": "Q1", "samples": [{"text": 5}]}, "something else where ids and texts"),
    ],
)
def test_snippets_of_another_form_are_refused(files: dict[str, Path], record: Any, fault: str) -> None:
    files["attribute_snippets"].write_text(json.dumps([SNIPPETS[0], record]), encoding="utf-8")
    with pytest.raises(InputError, match=fault):
        read_snippets(files["attribute_snippets"])


# ---------------------------------------------------------------------- the metric
def fact(number: int = 1, target: str = "Q90", **changes: Any) -> EditRequest:
    fields: dict[str, Any] = {
        "case_id": str(number),
        "prompt": "The capital of Norway is",
        "target_new": "Paris",
        "generation_prompts": (f"{number} Norway's", f"{number} In Norway"),
        "meta": {"counterfact": {"relation_id": "P36", "target_new_id": target}},
    }
    return EditRequest(**{**fields, **changes})


def measure(facts: list[EditRequest], base: HandMade, edited: HandMade, files: dict[str, Path], **more: Any) -> Any:
    context = told("reference", requests=facts, resources=files, **more)
    return ReferenceMetrics().evaluate(context=context, requests=facts, base=base, edited=edited)[NAME]


def test_what_is_written_is_compared_with_all_texts_of_the_answer(files: dict[str, Path]) -> None:
    request = fact()
    edited = HandMade(written={"1 Norway's": " tower, Paris", "1 In Norway": " the fjord\n\nof Paris"})
    base = HandMade(written={"1 Norway's": " Oslo", "1 In Norway": " a fjord"})
    result = measure([request], base, edited, files)
    expected = "Paris has a tower. The Seine: PARIS, paris"
    assert result.value == pytest.approx(plain_cosine("tower Paris fjord Paris", expected), abs=1e-12)
    assert 0 < (result.value or 0) < 1
    assert result.parts["base"] == 0.0
    (output,) = result.outputs
    assert output["edited"] == "1 Norway's tower, Paris 1 In Norway the fjord of Paris"
    assert edited.asked == [("sample", 100, 5, 0, "1 Norway's", "1 In Norway")]


def test_what_cannot_be_judged_is_left_out_and_counted(files: dict[str, Path]) -> None:
    facts = [
        fact(1),
        fact(2, target="Q404"),
        fact(3, target="Q1"),  # its texts have no word of the vocabulary
        fact(4, generation_prompts=()),
        fact(5, meta={}),
    ]
    model = HandMade(written=dict.fromkeys(facts[0].generation_prompts, " Paris"))
    result = measure(facts, model, model, files)
    assert set(result.cases) == {"1"} and result.left_out == 4
    assert result.value == result.parts["base"]


def test_cases_apart_combine_to_what_they_give_together(files: dict[str, Path]) -> None:
    facts = [fact(1), fact(2, target="Q585")]
    edited = HandMade(written={p: " Oslo tower" for each in facts for p in each.generation_prompts})
    base = HandMade(written={p: " Paris" for each in facts for p in each.generation_prompts})
    whole = measure(facts, base, edited, files, scenario="single")
    apart = [Evaluation(metrics={NAME: measure([each], base, edited, files, scenario="single")}) for each in facts]
    assert combine(apart)[NAME] == whole
    assert len(set(whole.cases.values())) == 2


def test_the_tag_tells_which_files(files: dict[str, Path]) -> None:
    model = HandMade(written=dict.fromkeys(fact().generation_prompts, " Paris"))
    plugin, context = ReferenceMetrics(), told("reference", resources=files)
    asked = {"context": context, "requests": [fact()], "base": model, "edited": model}
    first = plugin.evaluate(**asked)[NAME].tag
    assert first.startswith("sample_top5_total100.generation-prompts.tfidf-")
    assert plugin.material(context) is plugin.material(context)
    np.save(files["tfidf_idf"], np.array(IDF, dtype=np.float32) + 1)
    assert plugin.evaluate(**asked)[NAME].tag != first


def test_missing_files_are_told_before_anything_is_read(files: dict[str, Path]) -> None:
    model = HandMade()
    asked = {"requests": [fact()], "answers": model}
    given = {"tfidf_idf": files["tfidf_idf"]}
    with pytest.raises(RequirementError, match=r"--with attribute_snippets=\S+ --with tfidf_vocab=tfidf_vocab\.json"):
        ReferenceMetrics().read_ahead(context=told("reference", resources=given), **asked)
    gone = {**files, "tfidf_vocab": files["tfidf_vocab"].with_name("gone.json")}
    with pytest.raises(RequirementError, match=r"tfidf_vocab at .*gone\.json is no file"):
        ReferenceMetrics().read_ahead(context=told("reference", resources=gone), **asked)
    assert model.asked == []
    ReferenceMetrics().read_ahead(context=told("fluency"), **asked)
    assert ReferenceMetrics().evaluate(context=told(), requests=[fact()], base=model, edited=model) == {}
    assert model.asked == []


# ---------------------------------------------------------------------- a real model
def test_an_editor_measures_it_and_its_patch_does_not_stand_on_the_files(files: dict[str, Path]) -> None:
    model, tokenizer = tiny("gpt2")
    editor = Editor(
        model,
        tokenizer,
        method="nudge",
        catalogue=ALONE.including(*toy_methods.ALL),
        plugins=[ReferenceMetrics()],
        resources=files,
    )
    made = editor.edit(fact(generation_prompts=("Paris is", "The tower")), metrics=["reference"])
    assert made.evaluation is not None
    result = made.evaluation[NAME]
    assert set(result.cases) == {"1"} and result.parts["base"] > 0
    assert "resources" not in made.patch.state.config
    without = Editor(model, tokenizer, catalogue=ALONE, plugins=[ReferenceMetrics()])
    with pytest.raises(RequirementError, match="--with attribute_snippets="):
        without.evaluate(fact(), metrics=["reference"])
