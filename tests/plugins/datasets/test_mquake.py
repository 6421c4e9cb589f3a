"""MQuAKE's cases: several edits, and questions that need them all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from plugins.datasets.reader_tools import FIXTURES, assert_round_trip, broken, records_of, stands

from kedit_core.errors import InputError, RequestError
from kedit_core.requests import EditRequest, check_requests
from kedit_datasets.readers.mquake import read_mquake
from kedit_datasets.records import Loaded

FIXTURE = FIXTURES / "mquake.json"
RECORDS = records_of("mquake.json")


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return read_mquake(FIXTURE)


def case(loaded: Loaded, number: int) -> list[EditRequest]:
    return [request for request in loaded if request.case_id == str(number)]


def test_every_rewrite_is_a_request_and_every_case_has_its_questions(loaded: Loaded) -> None:
    for record in RECORDS:
        requests = case(loaded, record["case_id"])
        assert len(requests) == len(record["requested_rewrite"])
        assert [request.portability for request in requests[:-1]] == [{}] * (len(requests) - 1)
        asked = requests[-1].portability["multi_hop"]
        assert [probe.prompt for probe in asked] == record["questions"]
        assert len(asked) == 3
    assert len(loaded) == sum(len(record["requested_rewrite"]) for record in RECORDS) == 14
    check_requests(loaded, needs_subject=True)


def test_a_rewrite_field_by_field(loaded: Loaded) -> None:
    first, second = case(loaded, 1561)
    assert first.prompt == "Dudley Town F.C. is associated with the sport of"
    assert (first.subject, first.target_new, first.ground_truth) == (
        "Dudley Town F.C.",
        "cricket",
        "association football",
    )
    assert first.aliases == ("the sport of cricket",)
    assert first.rephrase_prompts == ("Which sport is Dudley Town F.C. associated with?",)
    assert (first.kind, first.locality, first.subject_span) == ("modify", {}, None)
    assert first.meta["mquake"] == {
        "edit": 0,
        "edits": 2,
        "relation_id": "P641",
        "target_new_id": "Q5375",
        "target_true_id": "Q2736",
    }
    assert second.prompt == "cricket was created in the country of"
    assert (second.target_new, second.aliases) == ("Denmark", ("Kingdom of Denmark",))


def test_multi_hop_questions_take_the_new_answer_or_any_alias(loaded: Loaded) -> None:
    probes = case(loaded, 1561)[1].portability["multi_hop"]
    assert {probe.answers for probe in probes} == {("Copenhagen", "København")}
    assert [dict(probe.meta) for probe in probes] == [{"any_of": True}] * 3
    assert case(loaded, 8)[0].portability["multi_hop"][0].answers == ("Answer of Fiji",)


def test_the_last_request_keeps_the_case(loaded: Loaded) -> None:
    about = case(loaded, 1561)[1].meta["mquake"]
    record = RECORDS[0]
    assert (about["edit"], about["edits"]) == (1, 2)
    assert (about["answer"], about["answer_alias"]) == ("London", ["London UK", "London, England"])
    assert about["single_hops"] == record["single_hops"]
    assert about["new_single_hops"] == record["new_single_hops"]
    assert about["orig"] == record["orig"]
    assert "answer_extended" not in about
    assert case(loaded, 3)[0].meta["mquake"]["answer_extended"] == ["Santiago", "Santiago de Chile"]
    assert "orig" not in case(loaded, 8)[0].meta["mquake"]
    assert case(loaded, 10)[0].meta["mquake"]["single_hops"][0]["cloze"] is None


def test_odd_subjects_and_unknown_fields(loaded: Loaded) -> None:
    (inside_a_word,) = case(loaded, 5)
    assert (inside_a_word.prompt, inside_a_word.subject_span) == ("prefix's neighbour is", (3, 6))
    assert inside_a_word.aliases == ("hither",)
    (braces,) = case(loaded, 7)
    assert (braces.prompt, braces.subject) == ("The capital of Malta {} is", "Malta {}")
    assert case(loaded, 9)[0].meta["raw"] == {"extra_field": {"kept": True}}
    assert "raw" not in case(loaded, 6)[0].meta
    assert len({request.meta["raw_digest"] for request in loaded}) == len(RECORDS)


@pytest.mark.parametrize(
    ("place", "change", "told"),
    [
        (0, {"requested_rewrite": []}, "record 0 (id 1561): requested_rewrite has no edits"),
        (1, {"questions": None}, "record 1 (id 2): questions are missing"),
        (2, {"case_id": "three"}, "record 2 (id three): case_id is text"),
        (3, {"new_answer": ""}, "record 3 (id 4): new_answer is empty"),
        (4, {"orig": []}, "record 4 (id 5): orig is no object"),
        (5, {"single_hops": [{"question": "q"}]}, "record 5 (id 6): single_hops[0].answer is missing"),
    ],
)
def test_faults_name_record_and_field(tmp_path: Path, place: int, change: Any, told: str) -> None:
    records = records_of("mquake.json")
    records[place] |= change
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    with pytest.raises(RequestError) as error:
        read_mquake(path)
    (fault,) = error.value.faults
    assert fault.startswith(told)


def test_a_template_without_a_place_for_the_subject_is_a_fault(tmp_path: Path) -> None:
    records = records_of("mquake.json")
    records[0]["requested_rewrite"][1]["prompt"] = "cricket was created in"
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    with pytest.raises(RequestError, match=r"requested_rewrite\[1\]\.prompt has no \{\}"):
        read_mquake(path)


def test_a_folder_is_read_by_its_split(tmp_path: Path) -> None:
    (tmp_path / "MQuAKE-CF-3k-v2.json").write_bytes(FIXTURE.read_bytes())
    (tmp_path / "MQuAKE-T.json").write_text(json.dumps(RECORDS[1:2]), encoding="utf-8")
    assert len(read_mquake(tmp_path)) == 14
    assert len(read_mquake(tmp_path, split="T")) == 1
    with pytest.raises(InputError, match=r"MQuAKE-CF\.json"):
        read_mquake(tmp_path, split="CF")


def test_requests_are_the_same_after_a_round_trip(loaded: Loaded) -> None:
    for request in loaded:
        assert_round_trip(request)


@settings(max_examples=60, deadline=None)
@given(record=broken(RECORDS))
def test_any_record_is_read_or_its_fault_told(record: Any) -> None:
    stands(read_mquake, record, RECORDS)
