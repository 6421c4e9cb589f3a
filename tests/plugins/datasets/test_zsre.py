"""ZsRE and FEVER in all their published forms, field by field."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plugins.datasets.reader_tools import FIXTURES, assert_round_trip, broken, records_of, stands

from kedit_core.errors import InputError, RequestError
from kedit_core.requests import Probe
from kedit_datasets.readers.zsre import read_zsre

FORMS = {
    "zsre_flat.json": "flat",
    "zsre_one_hop.json": "flat",
    "zsre_mend.jsonl": "mend",
    "zsre_fever.jsonl": "mend",
    "zsre_malmen.json": "malmen",
    "zsre_malmen_fever.json": "malmen_fever",
}
RECORDS = {name: records_of(name) for name in FORMS}


def read(name: str, **options: Any) -> Any:
    return read_zsre(FIXTURES / name, **options)


def test_flat_form_edits_to_the_alternative_and_keeps_everything() -> None:
    loaded = read("zsre_flat.json")
    first = loaded[0]
    assert (first.prompt, first.target_new, first.ground_truth, first.subject, first.case_id) == (
        "Which town is the Harbour Clock of Lunden in?",
        "Marrow Bay",
        "Lunden",
        "Harbour Clock of Lunden",
        "zsre:0",
    )
    assert first.rephrase_prompts == ("In which town can one find the Harbour Clock of Lunden?",)
    assert first.locality == {
        "neighborhood": (Probe(prompt="nq question: who wrote the tale of the blue heron", answers=("Ilse Marten",)),)
    }
    assert first.aliases == () and first.portability == {} and first.kind == "modify"
    assert first.meta["dataset"] == "zsre" and len(first.meta["raw_digest"]) == 64
    assert first.meta["zsre"] == {
        "form": "flat",
        "target_policy": "alt",
        "alt": "Marrow Bay",
        "prediction": "Oster",
        "condition": "Oster >> Marrow Bay || Which town is the Harbour Clock of Lunden in?",
    }
    # the record without an alternative (8) is left out, and the last one's locality probe, which has no answer
    assert [request.case_id for request in loaded] == [f"zsre:{i}" for i in range(10) if i != 8]
    assert loaded.report.dropped == {
        "records without an alternative answer": 1,
        "locality probes without prompt or answer": 1,
        "subjects that are not in the prompt": 1,
    }
    assert (loaded.report.records, loaded.report.requests) == (10, 9)
    assert loaded.report.fields["rephrase"] == 9 and loaded.report.fields["src"] == 10
    assert loaded[8].locality == {}
    assert loaded[1].target_new == "Þórshöfn" and loaded[1].ground_truth == "Düren"
    assert loaded[2].prompt == "In which year did the Tarn Valley Railway open?"  # outer spaces only
    assert loaded[3].rephrase_prompts == () and loaded[5].rephrase_prompts == ()
    assert loaded[6].meta["raw"] == {"origin": {"page": 12, "checked": None}}
    # "Keld" is "keld" in the prompt, and Port Ellery is not in its prompt at all
    assert (loaded[6].subject, loaded[6].subject_span) == ("Keld", (12, 16))
    assert loaded[7].subject is None and loaded[7].meta["subject"] == "Port Ellery"


def test_target_policy_changes_only_the_targets() -> None:
    alternative, true = read("zsre_flat.json"), read("zsre_flat.json", target_policy="answer")
    assert len(alternative) == len(true) == 9
    for one, other in zip(alternative, true, strict=True):
        bare: dict[str, Any] = {"target_new": "x", "ground_truth": None, "aliases": (), "meta": {}}
        assert attrs.evolve(one, **bare) == attrs.evolve(other, **bare)
        assert one.ground_truth == other.target_new and other.ground_truth is None
    # all true answers count, each once
    assert (true[3].target_new, true[3].aliases) == ("cello", ("violoncello", "the cello"))
    assert [r.meta["zsre"]["target_policy"] for r in (alternative[0], true[0])] == ["alt", "answer"]


def test_every_locality_question_of_the_flat_form_carries_its_prefix() -> None:
    prompts = [probe.prompt for request in read("zsre_flat.json") for probe in request.locality.get("neighborhood", ())]
    assert len(prompts) == 8 and all(prompt.startswith("nq question: ") for prompt in prompts)
    marked = [
        probe.prompt
        for request in read("zsre_flat.json", question_mark=True)
        for probe in request.locality.get("neighborhood", ())
    ]
    assert marked == [f"{prompt}?" for prompt in prompts]


def test_one_hop_questions_are_portability() -> None:
    loaded = read("zsre_one_hop.json")
    assert loaded[0].portability == {
        "Reasoning": (
            Probe(
                prompt="What is entry 0, that goes with Harbour Clock of Lunden, known for?",
                answers=("thing 0",),
                meta={"recalled_relation": "(Marrow Bay, known for, entry 0)"},
            ),
        )
    }
    assert loaded[1].portability["Reasoning"][0].answers == ("thing 1", "das Ding 1")
    assert loaded[4].portability["Reasoning"][0].meta == {}
    assert loaded[5].portability == {} and loaded[7].portability == {}
    assert loaded.report.dropped["portability probes without question or answer"] == 1
    assert loaded[8].meta["raw"] == {"portability.Grade": 4}


def test_mend_form() -> None:
    loaded = read("zsre_mend.jsonl")
    assert loaded.report.dropped == {"records without alternatives": 1, "records without rephrases": 2}
    assert [r.case_id for r in loaded] == ["zs-000", "zs-001", "zs-002", "zs-003", "7007", "zsre:8", "zs-009"]
    first = loaded[0]
    assert (first.target_new, first.ground_truth, first.subject) == ("Marrow Bay", "Lunden", None)
    # the rephrase that equals the question is dropped
    assert first.rephrase_prompts == (
        "In which town can one find the Harbour Clock of Lunden?",
        "The Harbour Clock of Lunden is in what town?",
    )
    assert first.meta["zsre"] == {
        "form": "mend",
        "target_policy": "alt",
        "prediction": "Oster",
        "alternatives": ["Marrow Bay", "other 0"],
    }
    assert first.locality == {} and first.meta["raw"] == {"output[0].provenance": [{"wikipedia_id": "100"}]}
    assert loaded[3].meta["raw"]["meta"] == {"subj": "Mira Solenne"}
    assert loaded[5].target_new == "barge" and loaded[6].ground_truth is None

    true = read("zsre_mend.jsonl", target_policy="answer")
    assert true.report.dropped["records without an answer"] == 1 and len(true) == 6
    assert (true[3].target_new, true[3].aliases) == ("cello", ("violoncello", "the cello"))


def test_mend_form_takes_locality_from_natural_questions() -> None:
    loaded = read("zsre_mend.jsonl", nq=FIXTURES / "zsre_nq.json")
    assert [r.locality["neighborhood"] for r in loaded[:4]] == [
        (Probe(prompt="Who painted the tall ship?", answers=("Holm", "Anna Persson Holm")),),
        (Probe(prompt="Where is the white mill?", answers=("Vester",)),),
        (Probe(prompt="When did the bell ring?", answers=("7", "at the seventh hour")),),
        (Probe(prompt="Who painted the tall ship?", answers=("Holm", "Anna Persson Holm")),),
    ]
    assert len(loaded.report.files) == 2


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"questions": ["a"]},
        {"questions": ["a"], "answers": []},
        {"questions": [3], "answers": [["b"]]},
        {"questions": ["a"], "answers": [[None]]},
        {"questions": ["a"], "answers": [[" "]]},
        {"questions": ["\ud800"], "answers": [["b"]]},
    ],
)
def test_a_file_that_has_no_natural_questions_is_refused(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "nq.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"nq\.json"):
        read("zsre_mend.jsonl", nq=path)


def test_fever_of_mend() -> None:
    loaded = read("zsre_fever.jsonl")
    assert loaded.report.dropped == {"records without rephrases": 1} and len(loaded) == 9
    first = loaded[0]
    assert (first.prompt, first.target_new, first.ground_truth) == (
        "The Tarn Valley Railway opened in 1887.",
        "SUPPORTS",
        "SUPPORTS",
    )
    assert loaded[1].target_new == "REFUTES" and loaded[1].ground_truth == "REFUTES"
    assert loaded[2].target_new == "REFUTES" and loaded[2].ground_truth == "SUPPORTS"
    assert first.rephrase_prompts == ("It is said: " + first.prompt, "As is known: " + first.prompt)
    assert first.case_id == "3000" and first.meta["zsre"]["logit"] == -2.5 and loaded[4].meta["zsre"]["logit"] == 0
    for record, request in zip([r for r in RECORDS["zsre_fever.jsonl"] if r["id"] != 3008], loaded, strict=True):
        assert request.target_new != record["prediction"] == request.meta["zsre"]["prediction"]


def test_malmen_form_edits_to_the_true_answer() -> None:
    loaded = read("zsre_malmen.json", question_mark=True)
    for record, request in zip(RECORDS["zsre_malmen.json"], loaded, strict=True):
        answers = [record["ans"]] if isinstance(record["ans"], str) else record["ans"]
        assert (request.prompt, request.rephrase_prompts) == (record["src"], (record["rephrase"],))
        assert [request.target_new, *request.aliases] == answers and request.ground_truth is None
        question = record["loc"].rstrip("?") + "?"  # the fixture's record 2 has its own
        assert request.locality["neighborhood"] == (Probe(prompt=question, answers=(record["loc_ans"],)),)
    assert loaded[3].aliases == ("violoncello", "the cello")


def test_fever_of_malmen() -> None:
    loaded = read("zsre_malmen_fever.json")
    for record, request in zip(RECORDS["zsre_malmen_fever.json"], loaded, strict=True):
        assert (request.prompt, request.target_new, request.ground_truth) == (record["prompt"], record["alt"], None)
        assert request.rephrase_prompts == tuple(p for p in record["equiv_prompt"] if p != record["prompt"])
    assert loaded[0].locality["neighborhood"] == (Probe(prompt="Mira Solenne plays the oboe.", answers=("REFUTES",)),)
    assert loaded[7].locality == {} and loaded.report.dropped == {"locality probes without prompt or answer": 1}


@pytest.mark.parametrize("name", FORMS)
def test_the_form_is_told_from_the_fields_or_given(name: str) -> None:
    found = read(name)
    assert {request.meta["zsre"]["form"] for request in found} == {FORMS[name]}
    assert list(read(name, form=FORMS[name])) == list(found)
    for request in found:
        assert_round_trip(request)
    # another form's fields are missing, and that is told of every record
    other = "malmen_fever" if FORMS[name] != "malmen_fever" else "flat"
    with pytest.raises(RequestError) as caught:
        read(name, form=other)
    assert len(caught.value.faults) == 10
    assert Counter(fault.rpartition(": ")[2] for fault in caught.value.faults) == {
        f"{'src' if other == 'flat' else 'prompt'} is missing": 10
    }


def test_a_split_is_a_file_of_the_folder_and_a_note(tmp_path: Path) -> None:
    for file, fixture in {"zsre_mend_eval.json": "zsre_flat.json", "zsre_mend_train.json": "zsre_malmen.json"}.items():
        (tmp_path / file).write_bytes((FIXTURES / fixture).read_bytes())
    assert len(read_zsre(tmp_path)) == len(read_zsre(tmp_path, split="eval")) == 9
    trained = read_zsre(tmp_path, split="train")
    assert len(trained) == 10 and {request.meta["split"] for request in trained} == {"train"}
    assert "split" not in read_zsre(tmp_path)[0].meta
    with pytest.raises(InputError, match=r"zsre_mend_eval_one_hop\.json for split 'one_hop'"):
        read_zsre(tmp_path, split="one_hop")


def test_questions_that_another_file_has_are_left_out(tmp_path: Path) -> None:
    held_out = [RECORDS["zsre_flat.json"][i] for i in (0, 5)]
    held_out[0] = held_out[0] | {"src": "which town is the  harbour clock of LUNDEN in"}
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(held_out))
    loaded = read("zsre_mend.jsonl", apart_from=path)
    assert loaded.report.dropped["records with a question of the other file"] == 1
    assert loaded.report.dropped["records without rephrases"] == 2  # record 5 is left out for that first
    assert [r.case_id for r in loaded] == ["zs-001", "zs-002", "zs-003", "7007", "zsre:8", "zs-009"]
    path.write_text("[]")
    with pytest.raises(InputError, match="no questions"):
        read("zsre_mend.jsonl", apart_from=path)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"form": "rome"}, "form is 'rome'; it is one of auto, mend, flat, malmen, malmen_fever"),
        ({"target_policy": "new"}, "target_policy is 'new'; it is one of alt, answer"),
        ({"question_mark": "yes"}, "question_mark is 'yes'; it is true or false"),
        ({"split": 3}, "split is 3; it is a name"),
        ({"nq": 5}, "nq is 5; it is the path of a file"),
        ({"apart_from": 2.5}, "apart_from is 2.5; it is the path of a file"),
    ],
)
def test_options_that_do_not_exist_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        read("zsre_flat.json", **options)


def test_faults_name_record_and_field(tmp_path: Path) -> None:
    records = [dict(record) for record in RECORDS["zsre_flat.json"][:4]]
    records[0]["answers"] = ["Lunden", 4]
    del records[1]["alt"]
    records[2]["src"] = ["What?"]
    path = tmp_path / "zsre.json"
    path.write_text(json.dumps([*records, "text", {"id": 5}]))
    with pytest.raises(RequestError) as caught:
        read_zsre(path)
    assert caught.value.faults == (
        "record 0: answers[1] is a number, expected text, a list of texts, or lists of them",
        "record 1: alt is missing",
        "record 2: src is a list, expected text",
        "record 4 is text, expected an object",
        "record 5 (id 5): input is missing, as are all fields of the forms mend, malmen, flat, malmen_fever",
    )


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("policy", ["alt", "answer"])
def test_a_broken_record_is_read_or_told(name: str, policy: str) -> None:
    @settings(max_examples=60, deadline=None)
    @given(record=broken(RECORDS[name]), form=st.sampled_from(("auto", FORMS[name])))
    def check(record: Any, form: str) -> None:
        stands(
            lambda path: read_zsre(path, target_policy=policy, form=form),
            record,
            RECORDS[name],
            suffix=Path(name).suffix,
        )

    check()
