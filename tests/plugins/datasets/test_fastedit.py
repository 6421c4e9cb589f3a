"""FastEdit's own format, field by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from plugins.datasets.reader_tools import FIXTURES, assert_round_trip, broken, records_of, stands

from kedit_core.errors import InputError, RequestError
from kedit_datasets.readers.fastedit import read_fastedit

PATH = FIXTURES / "fastedit.json"
RECORDS = records_of("fastedit.json")


def test_records_field_by_field() -> None:
    loaded = read_fastedit(PATH)
    assert (loaded.report.records, loaded.report.requests, dict(loaded.report.dropped)) == (10, 10, {})
    for i, (record, request) in enumerate(zip(RECORDS, loaded, strict=True)):
        assert request.prompt == record["prompt"].replace("{}", record["subject"])
        assert (request.target_new, request.subject) == (record["target"], record["subject"])
        assert request.subject_span is not None
        assert request.prompt[slice(*request.subject_span)] == record["subject"]
        assert request.case_id == f"fastedit:{i}" and request.locality == {} and request.ground_truth is None
        assert_round_trip(request)
    assert loaded[0].rephrase_prompts == ("Mira Solenne is a master of the", "Mira Solenne performs on the")
    assert loaded[5].rephrase_prompts == loaded[6].rephrase_prompts == ()
    assert loaded[8].rephrase_prompts == ("Nandi Star takes its name from",)
    assert loaded[4].prompt == "東雲橋がある都市は" and loaded[4].subject_span == (0, 3)
    assert loaded[9].meta["raw"] == {"weight": 0.5}


def test_the_last_place_of_the_subject_counts() -> None:
    request = read_fastedit(PATH)[7]
    assert request.prompt == "Some say Orrin's Gate is old, but Orrin's Gate was designed by"
    assert request.subject_span == (34, 46)


def test_faults_name_record_and_field(tmp_path: Path) -> None:
    records = json.loads(json.dumps(RECORDS[:3]))
    records[0]["prompt"] = "No place for it"
    records[1]["queries"] = ["fine", 3]
    del records[2]["target"]
    (tmp_path / "example.json").write_text(json.dumps(records))
    with pytest.raises(RequestError) as caught:
        read_fastedit(tmp_path)
    assert caught.value.faults == (
        "record 0: prompt has no {} for the subject",
        "record 1: queries[1] is a number, expected text",
        "record 2: target is missing",
    )
    with pytest.raises(InputError, match=r"has no example\.json"):
        read_fastedit(tmp_path.parent)


@settings(max_examples=200, deadline=None)
@given(record=broken(RECORDS))
def test_a_broken_record_is_read_or_told(record: Any) -> None:
    stands(read_fastedit, record, RECORDS)
