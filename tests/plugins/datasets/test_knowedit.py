"""KnowEdit's records, field by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plugins.datasets.reader_tools import FIXTURES, assert_round_trip, broken, records_of, stands

from kedit_core.errors import InputError, RequestError
from kedit_core.requests import EditRequest, Probe, check_requests
from kedit_datasets.readers.knowedit import (
    TASKS,
    read_counterfact,
    read_knowedit,
    read_recent,
    read_wikibio,
    read_zsre,
)
from kedit_datasets.records import Loaded

RS, FORGET = "Relation_Specificity", "Forgetfulness"


@pytest.fixture(scope="module")
def recent() -> Loaded:
    return read_recent(FIXTURES / "knowedit_recent.json")


def by_case(loaded: Loaded, number: int) -> EditRequest:
    return next(request for request in loaded if (request.case_id or "").endswith(f":{number}"))


def written(folder: Path, *records: Any) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def test_a_recent_fact_is_an_insertion_with_all_of_its_probes(recent: Loaded) -> None:
    request = by_case(recent, 0)
    assert (request.prompt, request.target_new) == ("The place of death of Leo Arons is", "Berlin")
    assert (request.subject, request.subject_span, request.ground_truth) == ("Leo Arons", None, None)
    assert (request.kind, request.case_id, request.rephrase_prompts) == ("insert", "knowedit-recent:0", ())
    assert request.locality == {
        RS: (
            Probe(
                prompt="The name of the father of Leo Arons is",
                answers=("Albert Arons",),
                meta={"required": [["Albert Arons"]]},
            ),
        )
    }
    assert {name: len(probes) for name, probes in request.portability.items()} == {
        "Logical_Generalization": 1,
        "Reasoning": 2,
        "Subject_Aliasing": 1,
    }
    assert request.portability["Reasoning"][1].answers == ("Europe", "Old Continent")
    assert request.portability["Subject_Aliasing"][0].answers == ("Berlin", "Berlin, Germany", "DE-BE")


def test_nested_answers_are_flattened_and_their_nesting_is_kept(recent: Loaded) -> None:
    probe = by_case(recent, 0).portability["Logical_Generalization"][0]
    assert probe.answers == ("no", "incorrect", "is dead")
    assert probe.meta == {"required": [["no"], ["incorrect"], ["is dead"]]}
    probe = by_case(recent, 9).portability["Reasoning"][0]
    assert probe.answers == ("Silver Rose", "Rose d'argent", "1999")
    assert probe.meta == {"required": [["Silver Rose", "Rose d'argent"], ["1999"]]}


def test_absent_null_and_empty_sub_keys_give_no_probes(recent: Loaded) -> None:
    for number in (1, 2, 4):
        assert by_case(recent, number).locality == {}
        assert by_case(recent, number).portability == {}
    assert list(by_case(recent, 3).locality) == [RS]


def test_rephrases_are_text_or_a_list_and_targets_too(recent: Loaded) -> None:
    assert by_case(recent, 1).rephrase_prompts == ("Ōkubo Haruno works as a",)
    request = by_case(recent, 2)
    assert request.rephrase_prompts == ("Mirela Voss is married to",)
    assert (request.target_new, request.aliases) == ("Jan Holt", ("J. Holt",))


def test_a_list_of_prompts_makes_a_probe_of_each_wording(recent: Loaded) -> None:
    assert by_case(recent, 3).locality[RS] == (
        Probe(prompt="Club Nord was founded in", answers=("1921",), meta={"item": 0}),
        Probe(prompt="The founding year of Club Nord is", answers=("1921",), meta={"item": 0}),
    )


def test_a_subject_is_placed_in_the_prompt_or_kept_beside(recent: Loaded) -> None:
    other_case, inside_a_word, absent = (by_case(recent, number) for number in (4, 5, 6))
    assert (other_case.subject, other_case.subject_span) == ("ADA", (22, 25))
    assert (inside_a_word.subject, inside_a_word.subject_span) == ("Kit", (14, 17))
    assert (absent.subject, absent.subject_span, absent.meta["subject"]) == (None, None, "Nobody")
    assert by_case(recent, 8).subject is None
    check_requests(recent)


def test_what_is_left_out_is_counted_and_the_rest_kept(recent: Loaded) -> None:
    assert recent.report.dropped == {
        "probes without an answer": 1,
        "probes without a prompt": 1,
        "records without a target": 1,
        "subjects that are not in the prompt": 1,
    }
    assert (recent.report.records, recent.report.requests, len(recent)) == (10, 9, 9)
    assert recent.report.fields["subject"] == 9
    request = by_case(recent, 8)
    assert (request.prompt, request.target_new) == ("The capital of Freedonia is", "Fredville")
    assert request.meta["raw"] == {"note": {"from": "editors"}}
    assert request.meta["dataset"] == "knowedit-recent"


def test_counterfacts_modify_and_keep_all_true_answers() -> None:
    loaded = read_counterfact(FIXTURES / "knowedit_counterfact.json")
    first, second, third, *_ = loaded
    assert (first.kind, first.ground_truth, first.target_new) == (
        "modify",
        "mayor of Vienna",
        "Archbishop of León, Mexico",
    )
    assert "true_answers" not in first.meta
    assert first.locality[FORGET][0].answers == ("mayor of Vienna",)
    assert first.portability["Subject_Aliasing"][0].meta == {}
    assert (second.ground_truth, second.meta["true_answers"]) == ("nurse", ["nurse", "registered nurse"])
    assert (third.ground_truth, third.meta["true_answers"]) == ("Globex", ["Globex", "Globex Corp.", "Initech"])


def test_zsre_has_rephrases_and_gold_locality() -> None:
    first, second, *_ = read_zsre(FIXTURES / "knowedit_zsre.json")
    assert first.rephrase_prompts == ("What family are Epaspidoceras?",)
    assert [probe.answers for probe in first.locality[RS]] == [("genus",), ("genus",)]
    assert first.portability["Reasoning"][0].answers == ("Owlet moths",)
    assert first.meta["raw"] == {"cond": "Geometridae >> Noctuidae || Which family does Epaspidoceras belong to?"}
    assert second.rephrase_prompts == (
        "What university did Watts Humphrey take part in?",
        "Where did Watts Humphrey study?",
    )


def test_wikibio_has_other_names_for_its_fields() -> None:
    first, second, *_ = read_wikibio(FIXTURES / "knowedit_wikibio.json")
    assert first.prompt.startswith("This is a Wikipedia passage about john russell reynolds. Sir John")
    assert first.target_new == "He received general education from his father."
    assert (first.subject, first.kind, first.portability) == ("john russell reynolds", "modify", {})
    assert len(first.locality[RS]) == 2
    assert second.locality == {}


def test_odd_counterfacts() -> None:
    loaded = read_counterfact(FIXTURES / "knowedit_counterfact.json")
    assert (loaded.report.records, len(loaded)) == (10, 9)
    assert loaded.report.dropped == {
        "probes without a prompt": 2,
        "probes without an answer": 2,
        "records without a target": 1,
    }
    # sub-keys that are null or empty are absent; one that the paper does not know is one more
    other_key = by_case(loaded, 3)
    assert (other_key.ground_truth, other_key.portability) == (None, {})
    assert other_key.locality == {"Common_Sense": (Probe(prompt="Water boils at", answers=("100 degrees",)),)}
    nested = by_case(loaded, 4)
    assert (nested.target_new, nested.aliases, nested.ground_truth) == ("Norland", ("Kingdom of Norland",), "Sudland")
    required = {"item": 0, "required": [["Rill Valley", "the Rill"], ["its river"]]}
    assert nested.portability == {
        "Logical_Generalization": tuple(
            Probe(prompt=prompt, answers=("Rill Valley", "the Rill", "its river"), meta=required)
            for prompt in ("Norland contains", "A valley of Norland is")
        )
    }
    assert nested.locality[FORGET][0].answers == ("Sudland",)
    assert by_case(loaded, 5).rephrase_prompts == (
        "The head of the Order of the Heron is",
        "Order of the Heron: led by",
    )
    partly = by_case(loaded, 6)
    assert partly.portability == {"Subject_Aliasing": (Probe(prompt="The elder Keld speaks", answers=("Danish",)),)}
    assert partly.locality == {RS: (Probe(prompt="Keld died in", answers=("Ribe",)),)}
    deep = by_case(loaded, 8)
    assert deep.meta["raw"] == {
        "case": {"no": 8},
        "locality.Relation_Specificity[0].source": {"page": 3, "checked": None},
    }
    numbers = by_case(loaded, 9)
    assert (numbers.subject, numbers.target_new, numbers.meta["true_answers"]) == ("{}", "7", ["0", "7.5"])
    assert numbers.locality[FORGET][0].meta == {"required": [["0"], ["7.5"]]}
    check_requests(loaded)


def test_odd_zsre() -> None:
    loaded = read_zsre(FIXTURES / "knowedit_zsre.json")
    assert (loaded.report.records, len(loaded)) == (10, 9)
    assert loaded.report.dropped == {"records without a target": 1, "subjects that are not in the prompt": 1}
    years = by_case(loaded, 2)
    assert {name: [p.answers for p in probes] for name, probes in years.portability.items()} == {
        "Reasoning": [("20th century", "twentieth")],
        "Subject_Aliasing": [("1901",)],
    }
    assert years.locality[RS] == (Probe(prompt="Tarn Valley Railway country", answers=("Norland",)),)
    assert (by_case(loaded, 3).target_new, by_case(loaded, 3).ground_truth) == ("利根川", "隅田川")
    small, inside, absent = (by_case(loaded, number) for number in (4, 5, 6))
    assert (small.subject, small.subject_span, small.rephrase_prompts) == ("mira solenne", (22, 34), ())
    assert (small.locality, small.meta["true_answers"]) == ({}, ["cello", "violoncello"])
    assert (inside.subject, inside.subject_span) == ("Aida", (17, 21))
    assert [dict(probe.meta) for probe in inside.portability["Reasoning"]] == [{"item": 0}] * 2
    assert (absent.subject, absent.meta["subject"]) == (None, "the author")
    stripped = by_case(loaded, 7)
    assert (stripped.prompt, stripped.target_new) == ("What is twinned with Düren?", "Cormeilles")
    assert (stripped.ground_truth, stripped.rephrase_prompts) == (None, ("What is Düren twinned with?",))
    bare = by_case(loaded, 9)
    assert (bare.subject, bare.target_new, bare.ground_truth) == (None, "Vester", None)
    assert bare.meta["raw"] == {"extra": [{"a": [1, {"b": None}]}], "locality.Relation_Specificity[0].rank": 0}


def test_odd_biographies() -> None:
    loaded = read_wikibio(FIXTURES / "knowedit_wikibio.json")
    assert (loaded.report.records, len(loaded)) == (10, 9)
    assert loaded.report.dropped == {
        "probes without an answer": 1,
        "records without a target": 1,
        "subjects that are not in the prompt": 1,
    }
    assert by_case(loaded, 2).locality[RS][0].answers == ("general", "army officer")
    # the context keeps its dots and line ends; outer spaces alone go
    assert by_case(loaded, 3).prompt.endswith("(b. 3.5.1901, St. Ives) was a painter, i.e. an artist.")
    assert by_case(loaded, 3).locality == {} == by_case(loaded, 4).locality
    assert by_case(loaded, 4).prompt.endswith("was a pilot.\nHe flew from 1920.")
    assert by_case(loaded, 4).target_new == "He retired in 1950."
    without_header = by_case(loaded, 5)
    assert (without_header.prompt, without_header.subject) == ("Tomas Ek was a pilot.", None)
    assert without_header.meta["subject"] == "nobody at all"
    spellings = by_case(loaded, 6)
    assert (spellings.target_new, spellings.aliases) == ("He won the Silver Rose.", ("He won a Silver Rose.",))
    assert [probe.prompt for probe in spellings.locality[RS]] == ["ivo lund country", "The country of ivo lund is"]
    assert by_case(loaded, 8).meta["raw"] == {"wiki_id": 17, "locality.Relation_Specificity[0].pid": "P21"}
    # the common names of the fields are taken, too
    common = by_case(loaded, 9)
    assert (common.subject, common.target_new) == ("keld", "He ruled for 12 years.")
    assert common.rephrase_prompts == ("Keld's reign:",)


@pytest.mark.parametrize("given_answer", ["a", ["a"], ["a", "b"], [["a", "b"], ["c"]], [["a"]], ["a", ["b"]]])
def test_every_form_of_answers_gives_aliases(tmp_path: Path, given_answer: Any) -> None:
    record = {"prompt": "p", "target_new": "t", "locality": {RS: [{"prompt": "q", "ground_truth": given_answer}]}}
    (request,) = read_recent(written(tmp_path, record))
    (probe,) = request.locality[RS]
    assert probe.answers[0] == "a"
    assert ("required" in probe.meta) == any(isinstance(each, list) for each in given_answer)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"target_new": "t"}, "record 0: prompt is missing"),
        ({"prompt": "p"}, "record 0: target_new is missing"),
        ({"prompt": "p", "target_new": 3}, "record 0: target_new is a number"),
        ({"prompt": "p", "target_new": "t", "locality": []}, "record 0: locality is a list"),
        (
            {"prompt": "p", "target_new": "t", "portability": {"Reasoning": [{"prompt": "q", "ground_truth": {}}]}},
            "record 0: portability.Reasoning[0].ground_truth is an object",
        ),
    ],
)
def test_faults_name_record_and_field(tmp_path: Path, record: Any, told: str) -> None:
    with pytest.raises(RequestError) as error:
        read_recent(written(tmp_path, record))
    assert error.value.faults[0].startswith(told)


def test_a_folder_is_read_by_its_split(tmp_path: Path) -> None:
    (tmp_path / "train_cf.json").write_text(json.dumps([{"prompt": "p", "target_new": "trained"}]), encoding="utf-8")
    (tmp_path / "test_cf.json").write_text(json.dumps([{"prompt": "p", "target_new": "tested"}]), encoding="utf-8")
    assert read_counterfact(tmp_path)[0].target_new == "tested"
    assert read_counterfact(tmp_path, split="train")[0].target_new == "trained"
    assert read_counterfact(tmp_path / "train_cf.json")[0].target_new == "trained"
    assert read_counterfact(written(tmp_path, {"prompt": "p", "target_new": "own"}), split="train")
    with pytest.raises(InputError, match="is the split test, not train; give train_cf"):
        read_counterfact(tmp_path / "test_cf.json", split="train")
    with pytest.raises(InputError, match="no split 'dev'; there are test, train"):
        read_counterfact(tmp_path, split="dev")
    with pytest.raises(InputError, match="recent_test"):
        read_recent(tmp_path)
    with pytest.raises(InputError, match="it has recent, counterfact"):
        read_knowedit(tmp_path, task="convsent")


@pytest.mark.parametrize("task", TASKS)
def test_requests_are_the_same_after_a_round_trip(task: str) -> None:
    for request in read_knowedit(FIXTURES / f"knowedit_{task}.json", task=task):
        assert_round_trip(request)


KNOWN = [record for task in TASKS for record in records_of(f"knowedit_{task}.json")]


@settings(max_examples=80, deadline=None)
@given(record=broken(KNOWN), task=st.sampled_from(tuple(TASKS)))
def test_any_record_is_read_or_its_fault_told(record: Any, task: str) -> None:
    stands(lambda path: read_knowedit(path, task=task), record, KNOWN)
