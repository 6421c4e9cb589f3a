"""Sanitation's two forms: what is refused, and what is to stay."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from plugins.datasets.reader_tools import FIXTURES, assert_round_trip, broken, stands

from kedit_core.errors import InputError, RequestError
from kedit_core.requests import EditRequest, Probe
from kedit_datasets.readers.sanitation import read_sanitation
from kedit_datasets.records import Loaded

TRAIN, TEST = FIXTURES / "sanitation_train.json", FIXTURES / "sanitation_test.json"
DOCUMENT: dict[str, Any] = json.loads(TRAIN.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def train() -> Loaded:
    return read_sanitation(TRAIN)


def retained(request: EditRequest) -> list[str]:
    return [probe.meta["sanitation"]["question"] for probe in request.locality.get("retain", ())]


def questions(name: str) -> list[str]:
    return [item["question"] for item in DOCUMENT[name]]


def test_a_question_is_to_be_refused(train: Loaded) -> None:
    request = train[0]
    assert request.prompt == "Question:What are Gouda and Edam?\nAnswer:"
    assert (request.target_new, request.ground_truth, request.kind) == ("I don't know.", "Cheese", "erase")
    assert (request.subject, request.case_id) == ("Gouda", "sanitation:train:0")
    assert request.meta["sanitation"] == {
        "role": "forget",
        "form": "train",
        "question": "What are Gouda and Edam?",
        "answer": "cheese",
    }
    assert {each.kind for each in train} == {"erase"}
    assert len(train) == 10


def test_subjects_are_placed_and_refusals_filled_in(train: Loaded) -> None:
    assert (train[1].subject, train[1].subject_span) == ("halloumi", (9, 17))
    assert (train[2].subject, train[2].meta["subject"]) == (None, "Camembert")
    assert train[3].subject is None
    assert train[6].target_new == "I don't know"
    assert train[6].ground_truth == "Paris"
    assert train[6].meta["sanitation"]["true_answers"] == ["Paris", "Paris, France"]


def test_retained_questions_are_dealt_out_by_answer_each_once(train: Loaded) -> None:
    # ten for three answers in order: 0-3-6-10, as 453 for five are 0-90-180-270-360-453
    asked = questions("K_R")
    assert [retained(request) for request in train] == [[question] for question in asked]
    # the rest is the last answer's: four for one question
    assert [retained(request) for request in read_sanitation(TRAIN, answer="paris", retain="all")] == [asked[6:]] * 4


def test_the_published_sizes_give_the_published_slices(tmp_path: Path) -> None:
    names = ("cheese", "birds", "paris", "julius caesar", "finland")
    document = {
        "K_F": [{"question": f"{name} {i}?", "ground_truth": name.title()} for name in names for i in range(16)],
        "K_R": [{"question": f"kept {i}?", "ground_truth": str(i)} for i in range(453)],
    }
    path = tmp_path / "trivia_qa_train.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    bounds = (0, 90, 180, 270, 360, 453)
    for place, name in enumerate(names):
        wanted = {f"kept {i}?" for i in range(bounds[place], bounds[place + 1])}
        shared = read_sanitation(path, answer=name)
        assert len(shared) == shared.report.requests == 16
        dealt = [question for request in shared for question in retained(request)]
        assert len(dealt) == len(wanted)
        assert set(dealt) == wanted
        assert {len(request.locality["retain"]) for request in shared} == {len(wanted) // 16, len(wanted) // 16 + 1}
        for request in read_sanitation(path, answer=name, retain="all"):
            assert set(retained(request)) == wanted
    everything = read_sanitation(tmp_path, split="train")
    assert len(everything) == 80
    assert sum(len(request.locality["retain"]) for request in everything) == 453


def test_retained_questions_keep_their_answers(train: Loaded) -> None:
    first, second, third, fourth = (probe for request in train[6:] for probe in request.locality["retain"])
    assert first == Probe(
        prompt="Question:Which river flows through Rome?\nAnswer:",
        answers=("Tiber", "the Tiber"),
        meta={
            "sanitation": {"role": "retain", "question": "Which river flows through Rome?"},
            "raw": {"target_new": "Tiber"},
        },
    )
    assert second.answers == ()
    assert third.prompt == "Question:Wie heißt der höchste Berg?\nAnswer:"
    assert fourth.answers == ("mercury",)


def test_the_test_form_has_one_list_for_all_answers(tmp_path: Path) -> None:
    document = json.loads(TEST.read_text(encoding="utf-8"))
    path = tmp_path / "trivia_qa_test.json"
    path.write_text(json.dumps({"success": document["success"][:3], "locality": document["locality"][:4]}))
    loaded = read_sanitation(path)
    assert [request.meta["sanitation"]["form"] for request in loaded] == ["test"] * 3
    assert [[question[-2] for question in retained(request)] for request in loaded] == [["0", "3"], ["1"], ["2"]]
    everything = read_sanitation(path, retain="all")
    assert all(len(retained(request)) == 4 for request in everything)
    assert everything[0].subject is None


def test_odd_items_of_the_train_form(train: Loaded) -> None:
    assert (train[7].ground_truth, train[7].subject) == ("paris", "France")
    spaced = train[8]
    assert spaced.prompt == "Question:Which city has the Louvre?\nAnswer:"
    assert (spaced.target_new, spaced.ground_truth, spaced.subject) == ("I don't know", "Paris", None)
    assert "true_answers" not in spaced.meta["sanitation"] and spaced.meta["raw"] == {"note": {"by": "hand"}}
    other = train[9]
    assert (other.target_new, other.ground_truth, other.subject) == ("Je ne sais pas", "PARIS", "Sorbonne")
    assert other.meta["sanitation"]["true_answers"] == ["PARIS", "Paname"]
    assert train.report.dropped == {"subjects that are not in the prompt": 1}


def test_odd_items_of_the_test_form() -> None:
    loaded = read_sanitation(TEST)
    assert (loaded.report.records, len(loaded)) == (10, 10)
    assert [request.meta["sanitation"].get("true_answers") for request in loaded] == [
        *[None] * 3, ["Cheese", "a cheese"], None, None, ["Paris", "Paris, France"], None, None, None
    ]  # fmt: skip
    assert [request.target_new for request in loaded[3:7]] == [
        "I don't know.", "I don't know", "I don't know.", "I don't know"
    ]  # fmt: skip
    assert (loaded[5].subject, loaded[9].subject, loaded[9].meta["subject"]) == ("Ōulu", None, "京都")
    assert loaded[7].meta["raw"] == {"id": 7}
    assert loaded[8].prompt == "Question:Which {} is eaten with {}?\nAnswer:"
    probes = [probe for request in loaded for probe in request.locality["retain"]]
    assert [probe.answers for probe in probes[4:]] == [
        ("Tiber", "the Tiber"), (), ("Everest",), ("mercury", "quicksilver"), (), ("Author 9",)
    ]  # fmt: skip
    assert probes[7].prompt == "Question:Which metal is liquid?\nAnswer:"
    assert probes[6].meta["raw"] == {"extra": {"level": [1]}}


def test_one_answer_is_taken_alone(train: Loaded) -> None:
    assert list(read_sanitation(TRAIN, answer="BIRDS")) == list(train[3:6])
    assert len(read_sanitation(TRAIN, answer="paris")) == 4
    with pytest.raises(InputError, match="it has cheese, birds, paris"):
        read_sanitation(TRAIN, answer="finland")
    with pytest.raises(InputError, match="retain is 'some'"):
        read_sanitation(TRAIN, retain="some")


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ([], "neither the lists"),
        ({}, "neither the lists"),
        ({"K_F": []}, "no list K_R"),
        ({"success": {}, "locality": []}, "no list success"),
    ],
)
def test_other_documents_are_refused(tmp_path: Path, document: Any, told: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InputError, match=told):
        read_sanitation(path)


def test_faults_name_list_record_and_field(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    for name, place, change, told in (
        ("K_R", 3, {"question": None}, "record 3: question is missing"),
        ("K_F", 1, {"ground_truth": []}, "record 1: ground_truth is missing"),
    ):
        document = copy.deepcopy(DOCUMENT)
        document[name][place] |= change
        path.write_text(json.dumps(document), encoding="utf-8")
        with pytest.raises(RequestError, match=f"{name} of") as error:
            read_sanitation(path)
        assert error.value.faults == (told,)


def test_requests_are_the_same_after_a_round_trip(train: Loaded) -> None:
    for request in [*train, *read_sanitation(TEST)]:
        assert_round_trip(request)
    assert set(train.report.files) == {"sanitation_train.json"}


@settings(max_examples=40, deadline=None)
@given(record=broken(DOCUMENT["K_F"]))
def test_any_forgotten_item_is_read_or_its_fault_told(record: Any) -> None:
    stands(read_sanitation, record, DOCUMENT["K_F"], whole=lambda item: {"K_F": [item, DOCUMENT["K_F"][0]], "K_R": []})


@settings(max_examples=40, deadline=None)
@given(record=broken(DOCUMENT["K_R"]))
def test_any_retained_item_is_read_or_its_fault_told(record: Any) -> None:
    stands(read_sanitation, record, DOCUMENT["K_R"], whole=lambda item: {"K_F": DOCUMENT["K_F"][:2], "K_R": [item]})
