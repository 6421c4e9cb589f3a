"""CounterFact in its original schema and in EasyEdit's, field by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plugins.datasets.reader_tools import FIXTURES, assert_round_trip, broken, records_of, stands

from kedit_core.errors import InputError, RequestError
from kedit_core.requests import Probe
from kedit_datasets.readers import counterfact
from kedit_datasets.readers.counterfact import cleaned, read_counterfact

NAMES = ("counterfact.json", "counterfact_flat.json")
RECORDS = {name: records_of(name) for name in NAMES}


def test_original_schema_field_by_field() -> None:
    loaded = read_counterfact(FIXTURES / "counterfact.json")
    assert (loaded.report.records, loaded.report.requests, dict(loaded.report.dropped)) == (10, 10, {})
    for record, request in zip(RECORDS["counterfact.json"], loaded, strict=True):
        rewrite = record["requested_rewrite"]
        new, true = rewrite["target_new"], rewrite["target_true"]
        assert request.prompt == rewrite["prompt"].replace("{}", rewrite["subject"])
        assert (request.target_new, request.ground_truth) == (new["str"], true["str"])
        assert (request.subject, request.subject_span) == (rewrite["subject"], None)
        assert request.case_id == str(record["case_id"])
        assert request.rephrase_prompts == tuple(record["paraphrase_prompts"])
        assert request.locality == {
            "neighborhood": tuple(Probe(prompt=p, answers=(true["str"],)) for p in record["neighborhood_prompts"])
        }
        assert request.generation_prompts == tuple(record["generation_prompts"])
        assert request.meta["counterfact"] == {
            "relation_id": rewrite["relation_id"],
            "target_new_id": new["id"],
            "target_true": true["str"],
            "target_true_id": true["id"],
            "attribute_prompts": record["attribute_prompts"],
            "pararel_idx": record["pararel_idx"],
        }
        assert_round_trip(request)
    assert loaded[8].meta["raw"] == {"source_page": 88, "requested_rewrite.note": "checked by hand"}
    assert "raw" not in loaded[0].meta and loaded[9].case_id == "21918"


def test_numbers_of_prompts_and_places_of_subjects() -> None:
    loaded = read_counterfact(FIXTURES / "counterfact.json")
    for i, request in enumerate(loaded):
        numbers = (
            len(request.rephrase_prompts),
            len(request.locality["neighborhood"]),
            len(request.meta["counterfact"]["attribute_prompts"]),
            len(request.generation_prompts),
        )
        assert numbers == (2, 10, 10, 10)
        assert request.subject is not None and request.subject in request.prompt
        # the fixture's record 7 has one paraphrase that lost its subject, which is noted
        assert [request.subject in text for text in request.rephrase_prompts] == [True, i != 7]
    assert loaded.report.notes == ["there are paraphrases without their subject"]


def test_cleaning_takes_the_other_text_away() -> None:
    loaded = read_counterfact(FIXTURES / "counterfact.json", clean=True)
    assert [request.rephrase_prompts for request in loaded] == [
        ("Mira Solenne is a master of the", "Mira Solenne performs on the"),
        ("The birthplace of Ansel Brück is", "Ansel Brück comes from"),
        # with a list of categories left over, all up to the subject goes
        ("Tarn Valley Railway is based in", "no stop before it Tarn Valley Railway has its offices in"),
        # the subject's own full stop is none
        ("no stop before it St. Olaf's Mill can be found in", "One finds St. Olaf's Mill in"),
        ("東雲橋が架かる都市は", "東雲橋の所在地は"),
        ("Keld holds a passport of", "Keld, who is a citizen of"),
        ("Café Zéphyr belongs to", "no stop before it The owner of Café Zéphyr is"),
        ("no stop before it The architect of Orrin's Gate is", "Beloved by all, it is a work of"),
        ("Nandi Star takes its name from", "The name of Nandi Star comes from"),
        ("The language of Ilse Marten is", "Ilse Marten speaks"),
    ]


def test_cleaning_is_that_of_the_published_script() -> None:
    def published(prompt: str, subject: str) -> str:
        """A slow reading of IKE's rule: cut at every full stop, then at every line end."""
        before, rest = prompt[: prompt.find(subject)], prompt[prompt.find(subject) :]
        for mark in ".\n":
            before = before.split(mark)[-1]
        whole = (before + rest).strip()
        return whole[whole.find(subject) :] if "Category" in whole else whole

    @settings(max_examples=200, deadline=None)
    @given(
        st.text(alphabet="aA. \n,", max_size=12), st.sampled_from(("", "Category ", "is")), st.text("b. \n", max_size=6)
    )
    def check(before: str, word: str, after: str) -> None:
        prompt = f"{before}{word}Subject{after}x"
        assert cleaned(prompt, "Subject") == published(prompt, "Subject")

    check()
    assert cleaned("Nothing. To see", "Subject") == "Nothing. To see"


def test_flat_schema_field_by_field() -> None:
    loaded = read_counterfact(FIXTURES / "counterfact_flat.json")
    first = loaded[0]
    assert (first.prompt, first.target_new, first.ground_truth, first.subject, first.case_id) == (
        "Mira Solenne plays the",
        "oboe",
        "cello",
        "Mira Solenne",
        "0",
    )
    assert first.rephrase_prompts == (
        "Shayna does this and Yossel goes still and dies. Mira Solenne is a master of the",
    )
    assert first.locality == {"neighborhood": (Probe(prompt="Adda Vell plays the", answers=("cello",)),)}
    assert first.meta["counterfact"] == {"target_true": "cello"}
    assert (loaded[1].subject, loaded[1].subject_span) == ("ANSEL brück", (0, 11))
    assert loaded[2].rephrase_prompts == ("A: Tarn Valley Railway is based in", "B")
    assert loaded[5].locality["neighborhood"][0].answers == ("Iceland", "Ísland")
    assert loaded[6].rephrase_prompts == () and loaded[7].locality == {}
    assert loaded[8].ground_truth is None and "target_true" not in loaded[8].meta["counterfact"]
    assert loaded[9].subject is None and loaded[9].meta["subject"] == "the author"
    assert loaded.report.dropped == {
        "locality probes without prompt or answer": 1,
        "subjects that are not in the prompt": 1,
    }
    assert read_counterfact(FIXTURES / "counterfact_flat.json", clean=True)[0].rephrase_prompts == (
        "Mira Solenne is a master of the",
    )
    for request in loaded:
        assert_round_trip(request)


def test_test_and_demonstrations_share_no_record_and_no_subject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counterfact, "HELD_OUT", 4)
    records = json.loads(json.dumps(RECORDS["counterfact.json"]))
    records[6]["requested_rewrite"]["subject"] = "MIRA Solenne"
    path = tmp_path / "counterfact.json"
    path.write_text(json.dumps(records))
    test, demos = (read_counterfact(tmp_path, split=split) for split in ("test", "demos"))
    assert [r.case_id for r in test] == ["0", "1", "2", "3"]
    assert [r.case_id for r in demos] == ["4", "5", "7", "8", "21918"]
    assert demos.report.dropped == {"records of the test split": 4, "records with a subject of the test split": 1}
    assert test.report.dropped == {"records of the other split": 6}
    assert len(read_counterfact(path)) == 10
    with pytest.raises(InputError, match=r"counterfact-edit\.json for split 'edit'"):
        read_counterfact(tmp_path, split="edit")
    (tmp_path / "counterfact-edit.json").write_bytes((FIXTURES / "counterfact_flat.json").read_bytes())
    assert read_counterfact(tmp_path, split="edit")[0].prompt == "Mira Solenne plays the"


def test_ike_holds_out_two_thousand_records() -> None:
    assert counterfact.HELD_OUT == 2000


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"split": "dev"}, "split is 'dev'; it is one of test, demos, train, val, edit"),
        ({"clean": 1}, "clean is 1; it is true or false"),
    ],
)
def test_options_that_do_not_exist_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_counterfact(FIXTURES / "counterfact.json", **options)


def test_faults_name_record_and_field(tmp_path: Path) -> None:
    records = json.loads(json.dumps(RECORDS["counterfact.json"][:6]))
    del records[0]["requested_rewrite"]["target_true"]
    records[1]["requested_rewrite"]["prompt"] = "Ansel Brück was born in"
    records[2]["neighborhood_prompts"][3] = {"prompt": "x"}
    records[3]["case_id"] = "three"
    records[4]["requested_rewrite"]["target_new"]["str"] = ""
    records[5]["generation_prompts"][0] = "\ud83d"
    path = tmp_path / "counterfact.json"
    path.write_text(json.dumps(records))
    with pytest.raises(RequestError) as caught:
        read_counterfact(path)
    assert caught.value.faults == (
        "record 0 (id 0): requested_rewrite.target_true is missing",
        "record 1 (id 1): requested_rewrite.prompt has no {} for the subject",
        "record 2 (id 2): neighborhood_prompts[3] is an object, expected text",
        "record 3 (id three): case_id is text, expected a whole number",
        "record 4 (id 4): requested_rewrite.target_new.str is empty",
        "record 5 (id 5): generation_prompts[0] has half a character (a lone surrogate)",
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_record_is_read_or_told(name: str) -> None:
    @settings(max_examples=150, deadline=None)
    @given(record=broken(RECORDS[name]), clean=st.booleans(), split=st.sampled_from((None, "test", "demos")))
    def check(record: Any, clean: bool, split: str | None) -> None:
        stands(lambda path: read_counterfact(path, clean=clean, split=split), record, RECORDS[name])

    check()
