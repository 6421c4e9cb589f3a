"""RippleEdits: statements told apart, and tests with their conditions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plugins.datasets.reader_tools import FIXTURES, assert_round_trip, broken, records_of, stands

from kedit_core.errors import InputError, RequestError
from kedit_core.requests import EditRequest, check_requests
from kedit_datasets.readers._ripple_statements import PHRASES, split, subject_of
from kedit_datasets.readers.ripple import read_ripple
from kedit_datasets.records import Loaded

FIXTURE = FIXTURES / "ripple.json"
RECORDS = records_of("ripple.json")


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return read_ripple(FIXTURE)


def case(loaded: Loaded, number: int) -> EditRequest:
    return next(request for request in loaded if (request.case_id or "").endswith(f":{number}"))


def test_an_edit_field_by_field(loaded: Loaded) -> None:
    request = case(loaded, 0)
    assert request.prompt == "The name of the country of citizenship of Leonardo DiCaprio is"
    assert (request.target_new, request.ground_truth) == ("Syria", "United States of America")
    assert (request.subject, request.aliases) == ("Leonardo DiCaprio", ("Syrian Arab Republic", "SY"))
    assert (request.kind, request.case_id) == ("modify", "ripple_edits:popular:0")
    assert request.meta["ripple"] == {
        "type": "popular",
        "relation": "COUNTRY_OF_CITIZENSHIP",
        "subject_id": "Q38111",
        "target_id": "Q858",
        "statement": "The name of the country of citizenship of Leonardo DiCaprio is Syria.",
        "split": "target",
        "original_fact": RECORDS[0]["edit"]["original_fact"],
        "true_answers": ["United States of America", "USA"],
    }
    check_requests(loaded, needs_subject=True)


def test_both_spellings_of_the_criterion_load(loaded: Loaded) -> None:
    misspelt, spelt = case(loaded, 0), case(loaded, 2)
    assert "Relation_Specifity" in RECORDS[0]
    assert misspelt.locality["Relation_Specificity"][0].answers == ("Irmelin DiCaprio", "Irmelin Indenbirken")
    assert spelt.locality["Relation_Specificity"][0].answers == ("Bo Ek",)
    assert "raw" not in misspelt.meta
    assert list(misspelt.locality) == ["Relation_Specificity", "Forgetfulness"]
    assert list(misspelt.portability) == ["Subject_Aliasing", "Compositionality_I"]


def test_probes_keep_tests_targets_and_conditions(loaded: Loaded) -> None:
    (forgetting,) = case(loaded, 0).locality["Forgetfulness"]
    assert forgetting.answers == ("United States of America", "USA", "Italy")
    assert forgetting.meta["ripple"]["targets"] == [["United States of America", "USA"], ["Italy"]]
    (two_hop,) = case(loaded, 0).portability["Compositionality_I"]
    assert two_hop.meta["ripple"] == {
        "test": 0,
        "query": 0,
        "condition": "OR",
        "query_type": "two_hop",
        "targets": [["Syrian pound", "SYP"]],
        "condition_queries": [{"prompt": "The name of the currency in Syria is", "targets": [["Syrian pound"]]}],
    }
    both = case(loaded, 1).portability["Logical_Generalization"]
    assert [(probe.meta["ripple"]["test"], probe.meta["ripple"]["query"]) for probe in both] == [(0, 0), (0, 1)]
    assert {probe.meta["ripple"]["condition"] for probe in both} == {"AND"}
    assert both[1].answers == ("Prince", "TAFKAP")


def test_types_say_what_an_edit_does(loaded: Loaded) -> None:
    assert [(request.case_id, request.kind) for request in loaded] == [
        ("ripple_edits:popular:0", "modify"),
        ("ripple_edits:recent:1", "insert"),
        ("ripple_edits:random:2", "modify"),
        ("ripple_edits:counterfactual:3", "modify"),
        ("ripple_edits:random:4", "modify"),
        ("ripple_edits:random:5", "modify"),
        ("ripple_edits:recent:8", "insert"),
        ("ripple_edits:random:9", "modify"),
    ]


@pytest.mark.parametrize(
    ("number", "prompt", "target", "truth", "subject", "how"),
    [
        (1, "The names of the siblings of Prince are", "Tyka Nelson", None, "Prince", "target"),
        (
            2,
            "The name of the author of What is Love is in the Air is",
            "Ann Lee",
            None,
            "What is Love is in the Air",
            "subject",
        ),
        (3, "QAnon follows", "United Front, Inc.", "United Nations", "QAnon", "original"),
        (4, "The motto of Nowhere is", "United we fall", "United we stand", "Nowhere", "original"),
        (5, "The name of the country which Służewo is the capital of is", "Peru", None, "Służewo", "original"),
        (9, "The gender of Peter A Lazzarini is", "male", "male", "Peter A Lazzarini", "original"),
    ],
)
def test_statements_are_told_apart(
    loaded: Loaded, number: int, prompt: str, target: str, truth: str | None, subject: str, how: str
) -> None:
    request = case(loaded, number)
    assert (request.prompt, request.target_new, request.ground_truth) == (prompt, target, truth)
    assert (request.subject, request.meta["ripple"]["split"]) == (subject, how)


def test_what_is_left_out_is_counted(loaded: Loaded) -> None:
    assert loaded.report.dropped == {
        "statements whose target cannot be told": 2,
        "tests with a condition without an answer": 1,
        "queries without an answer": 1,
    }
    (probe,) = case(loaded, 8).locality["Relation_Specificity"]
    assert (probe.prompt, probe.answers) == ("The place of birth of Ada Byron is", ("London",))
    assert (probe.meta["ripple"]["test"], probe.meta["ripple"]["query"]) == (1, 1)
    # spellings of one character count when they are digits
    (probe,) = case(loaded, 4).locality["Relation_Specificity"]
    assert probe.answers == ("3",)
    assert case(loaded, 9).meta["raw"] == {"curated_by": "hand"}


def plain_name(value: str) -> bool:
    return value == value.strip() and not value.endswith(".") and " is" not in value


NAMES = st.text(st.characters(categories=("Lu", "Ll", "Nd", "Zs"), max_codepoint=0x24F), min_size=1).filter(plain_name)


@settings(max_examples=100, deadline=None)
@given(relation=st.sampled_from(sorted(PHRASES)), subject=NAMES, target=NAMES)
def test_any_statement_is_split_where_it_was_joined(relation: str, subject: str, target: str) -> None:
    prompt = PHRASES[relation].replace("{}", subject)
    tail = PHRASES[relation].partition("{}")[2]
    for known in ({"targets": [target], "subjects": []}, {"targets": [], "subjects": [subject]}):
        found = split(f"{prompt} {target}.", relation, original=None, **known)
        assert found is not None
        assert (found.prompt, found.target, found.subject) == (prompt, target, subject)
    assert subject_of(prompt, relation) == subject
    alone = split(f"{prompt} {target}.", relation, [], [], None)
    if f"{prompt} {target}".count(f"{tail} ") == 1:
        assert alone is not None
        assert (alone.prompt, alone.how) == (prompt, "phrase")
    else:
        assert alone is None


def test_words_that_both_targets_begin_with_belong_to_the_targets() -> None:
    for relation in ("CAPITAL_OF", None):
        found = split(
            "The name of the country which Rome is the capital of is New South Wales.",
            relation,
            [],
            [],
            "The name of the country which Rome is the capital of is New South Land.",
        )
        assert found is not None
        assert (found.target, found.how) == ("New South Wales", "original")


def test_a_label_that_is_only_the_end_of_the_target_does_not_tell_it() -> None:
    found = split("The place of birth of Ada is New York.", "PLACE_OF_BIRTH", ["York"], [], None)
    assert found is not None
    assert (found.target, found.how) == ("New York", "phrase")


def test_nothing_is_guessed() -> None:
    assert split("The motto of Nowhere is United we fall.", "MOTTO", [], [], None) is None
    assert split("The occupation of Ada is .", "OCCUPATION", [], [], None) is None
    assert split("The occupation of  is pilot.", "OCCUPATION", [], [], None) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"example_type": "rare"}, "record 0: example_type is 'rare', which is none of recent"),
        ({"edit": None}, "record 0: edit is missing"),
        ({"Forgetfulness": [{"test_condition": "XOR"}]}, "record 0: Forgetfulness[0].test_condition is 'XOR'"),
        (
            {"Subject_Aliasing": [{"test_condition": "OR", "test_queries": [{"answers": [{"value": 1}]}]}]},
            "record 0: Subject_Aliasing[0].test_queries[0].",
        ),
    ],
)
def test_faults_name_record_and_field(tmp_path: Path, change: Any, told: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{**RECORDS[0], **change}]), encoding="utf-8")
    with pytest.raises(RequestError) as error:
        read_ripple(path)
    assert error.value.faults[0].startswith(told)


def test_a_pointer_to_large_file_storage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "popular.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:bc71\nsize 19658316\n", encoding="utf-8")
    for given_path in (path, tmp_path):
        with pytest.raises(InputError, match="git lfs pull"):
            read_ripple(given_path)
    with pytest.raises(InputError, match=r"recent\.json"):
        read_ripple(tmp_path, split="recent")


def test_requests_are_the_same_after_a_round_trip(loaded: Loaded) -> None:
    for request in loaded:
        assert_round_trip(request)


@settings(max_examples=100, deadline=None)
@given(record=broken(RECORDS))
def test_any_record_is_read_or_its_fault_told(record: Any) -> None:
    stands(read_ripple, record, RECORDS)
