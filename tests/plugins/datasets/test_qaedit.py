"""QAEdit, field by field. The histogram of the published subset cannot be a test here: the file is not ours to ship."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from plugins.datasets.reader_tools import FIXTURES, assert_round_trip, broken, records_of, stands

from kedit_core.errors import InputError, RequestError
from kedit_core.requests import Probe
from kedit_datasets.readers.qaedit import read_qaedit

PATH = FIXTURES / "qaedit.json"
RECORDS = records_of("qaedit.json")


def test_records_field_by_field() -> None:
    loaded = read_qaedit(PATH)
    assert (loaded.report.records, loaded.report.requests) == (10, 10)
    for record, request in zip(RECORDS, loaded, strict=True):
        assert (request.prompt, request.target_new) == (record["prompt"], record["target"])
        assert request.ground_truth is None and request.kind == "modify"
        assert request.rephrase_prompts == (() if record["rephrase"] is None else (record["rephrase"],))
        assert request.meta["qaedit"] == {"source": record["source"]}
        assert_round_trip(request)
    assert loaded[0].locality["neighborhood"] == tuple(
        Probe(prompt=each["loc"], answers=(each["loc_ans"],), meta={"first": True} if i == 0 else {})
        for i, each in enumerate(RECORDS[0]["locality"])
    )
    assert loaded[6].locality["neighborhood"][2].answers == ("the Sal", "Sal")
    assert loaded[9].meta["raw"] == {"difficulty": "hard", "locality[1].url": "none"}
    assert loaded[5].rephrase_prompts == ()


def test_five_locality_probes_but_where_an_answer_is_missing() -> None:
    loaded = read_qaedit(PATH)
    assert [len(request.locality["neighborhood"]) for request in loaded] == [5] * 8 + [4, 5]
    # the first one is that of the record's first usable item, and marked
    assert all([p.meta.get("first", False) for p in r.locality["neighborhood"]][:2] == [True, False] for r in loaded)
    alone = read_qaedit(PATH, first_locality=True)
    assert [r.locality["neighborhood"] for r in alone] == [r.locality["neighborhood"][:1] for r in loaded]


def test_ids_that_come_twice_are_two_cases() -> None:
    cases = [request.case_id for request in read_qaedit(PATH)]
    # ids count within a source, and 1100 comes twice in SQA
    assert cases[:6] == ["SQA:1100", "TQA:1101", "NQ:1102", "SQA:1103", "SQA:1100#4", "TQA:1105"]
    assert len(set(cases)) == 10


def test_decorated_targets_stay_and_their_plain_spelling_counts_too() -> None:
    loaded = read_qaedit(PATH)
    assert [(r.target_new, r.aliases) for r in loaded[:5]] == [
        ("Lunden *", ("Lunden",)),
        ("Düren†‡", ("Düren",)),
        (")", ()),
        ("* * *", ()),
        ("隅田川", ()),
    ]
    assert "there are targets with decorations; without them they are aliases" in loaded.report.notes
    assert str(loaded.report).startswith("qaedit: 10 records, 10 requests; there are targets with decorations")


def test_only_questions_of_one_source() -> None:
    assert Counter(r.meta["qaedit"]["source"] for r in read_qaedit(PATH)) == {"SQA": 5, "TQA": 3, "NQ": 2}
    asked = read_qaedit(PATH, source="TQA")
    assert [r.case_id for r in asked] == ["TQA:1101", "TQA:1105", "TQA:1109"]
    assert asked.report.dropped["records of other sources"] == 7


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"source": "nq"}, "source is 'nq'; it is one of NQ, TQA, SQA"),
        ({"first_locality": "1"}, "first_locality is '1'; it is true or false"),
    ],
)
def test_options_that_do_not_exist_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_qaedit(PATH, **options)


def test_faults_name_record_and_field(tmp_path: Path) -> None:
    records = json.loads(json.dumps(RECORDS[:3]))
    records[0]["locality"][1] = "who?"
    records[1]["target"] = 1887
    records[2]["id"] = 1.5
    path = tmp_path / "QAEdit.json"
    path.write_text(json.dumps(records))
    with pytest.raises(RequestError) as caught:
        read_qaedit(tmp_path)  # the folder with the published name
    assert caught.value.faults == (
        "record 0 (id 1100): locality[1] is text, expected an object",
        "record 1 (id 1101): target is a number, expected text",
        "record 2: id is a number, expected a whole number",
    )


@settings(max_examples=200, deadline=None)
@given(record=broken(RECORDS))
def test_a_broken_record_is_read_or_told(record: Any) -> None:
    stands(read_qaedit, record, RECORDS)
