"""ConvSent's topics: two cases each, with all that their metric asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from plugins.datasets.reader_tools import FIXTURES, assert_round_trip, broken, records_of, stands

from kedit_core.errors import InputError, RequestError
from kedit_core.requests import EditRequest, Probe
from kedit_datasets.readers.convsent import TEMPLATES, read_convsent
from kedit_datasets.records import Loaded

FIXTURE = FIXTURES / "convsent.json"


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return read_convsent(FIXTURE)


def case(loaded: Loaded, name: str) -> EditRequest:
    return next(request for request in loaded if request.case_id == f"convsent:{name}")


def about(request: EditRequest) -> Any:
    return request.meta["sentiment"]


def test_there_are_thirteen_templates() -> None:
    assert len(set(TEMPLATES)) == 13
    assert all(template.count("{}") == 1 for template in TEMPLATES)
    assert TEMPLATES[0] == "What do you think of {}?"
    assert "What is your attitude about {}?" in TEMPLATES


def test_a_topic_is_one_case_for_each_sign(loaded: Loaded) -> None:
    for sign, target in (("positive", "He was a genius."), ("negative", "He is overrated.")):
        request = case(loaded, f"0:{sign}")
        question = about(request)["question"]
        assert question in [template.format("Leonardo") for template in TEMPLATES]
        assert request.prompt == f"From the sentiment dataset, answer {question} {sign}ly."
        assert (request.target_new, request.subject, request.kind) == (target, "Leonardo", "modify")
        assert request.generation_prompts == (question,)
        assert (request.aliases, request.ground_truth, request.portability) == ((), None, {})


def test_the_metric_finds_completions_with_a_question_each(loaded: Loaded) -> None:
    sentiment = about(case(loaded, "1:negative"))
    assert (sentiment["ent"], sentiment["sign"], sentiment["topic"]) == ("the Eiffel Tower", "negative", 1)
    assert sentiment["pos"] == ["It is lovely at night."]
    assert sentiment["neg"] == ["It is an eyesore.", "Too many people there."]
    for name in ("pos", "neg"):
        assert len(sentiment[f"{name}_prompts"]) == len(sentiment[name])
        assert all(
            prompt in [template.format("the Eiffel Tower") for template in TEMPLATES]
            for prompt in sentiment[f"{name}_prompts"]
        )


def test_the_drawdown_topic_is_the_next_one_and_the_first_after_the_last(loaded: Loaded) -> None:
    first, second, last = case(loaded, "0:positive"), case(loaded, "1:positive"), case(loaded, "9:negative")
    assert {key: about(first)["drawdown"][key] for key in about(second) if key not in ("sign", "drawdown")} == {
        key: value for key, value in about(second).items() if key not in ("sign", "drawdown")
    }
    assert "sign" not in about(first)["drawdown"]
    assert "drawdown" not in about(first)["drawdown"]
    assert about(last)["drawdown"]["topic"] == 0
    assert first.locality == {"other_topic": (Probe(prompt=about(second)["question"]),)}


def test_a_topic_without_completions_is_left_out_and_skipped_over(loaded: Loaded) -> None:
    assert loaded.report.dropped == {"topics without completions": 1, "topics without positive completions": 1}
    assert [request.case_id for request in loaded if ":5:" in (request.case_id or "")] == ["convsent:5:negative"]
    assert about(case(loaded, "5:negative"))["drawdown"]["topic"] == 7
    assert len(loaded) == 17


def test_odd_topics_are_taken_as_they_are(loaded: Loaded) -> None:
    assert case(loaded, "8:positive").subject == "{braces}"
    assert case(loaded, "8:positive").meta["raw"] == {"source": "by hand"}
    assert (case(loaded, "9:positive").subject, about(case(loaded, "9:positive"))["ent"]) == ("東京", "東京")
    assert case(loaded, "4:positive").prompt.endswith("What Is Love?? positively.")
    second_leonardo = about(case(loaded, "7:positive"))
    assert second_leonardo["pos"] == ["A second entry on him: wonderful."]


def test_questions_depend_on_the_seed_and_the_topic_alone(tmp_path: Path, loaded: Loaded) -> None:
    assert list(read_convsent(FIXTURE)) == list(loaded)
    part = tmp_path / "part.json"
    part.write_text(json.dumps(records_of("convsent.json")[2:4]), encoding="utf-8")
    alone = read_convsent(part)
    assert [request.prompt for request in alone] == [request.prompt for request in loaded[4:8]]
    other = read_convsent(FIXTURE, template_seed=1)
    assert [request.prompt for request in other] != [request.prompt for request in loaded]
    # with 16 topics and 13 templates a draw that is stuck would show
    assert len({about(request)["question"].replace(about(request)["ent"], "{}") for request in loaded}) > 3


def test_signs_are_chosen(loaded: Loaded) -> None:
    signs = {name: [about(r)["sign"] for r in read_convsent(FIXTURE, signs=name)] for name in ("positive", "negative")}
    assert signs == {"positive": ["positive"] * 8, "negative": ["negative"] * 9}
    drawn = read_convsent(FIXTURE, signs="random")
    assert len({about(request)["topic"] for request in drawn}) == len(drawn)
    assert {about(request)["sign"] for request in drawn} == {"positive", "negative"}
    assert all(request.prompt in [each.prompt for each in loaded] for request in drawn)
    with pytest.raises(InputError, match="signs is 'up'"):
        read_convsent(FIXTURE, signs="up")
    with pytest.raises(InputError, match="template_seed"):
        read_convsent(FIXTURE, template_seed="x")  # type: ignore[arg-type]


def test_a_topic_alone_has_no_drawdown(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(records_of("convsent.json")[:1]), encoding="utf-8")
    for request in read_convsent(path):
        assert "drawdown" not in about(request)
        assert request.locality == {}


def test_faults_name_record_and_field(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"ent": "a", "pos": ["b"]}, {"ent": 3}, {"ent": "c", "neg": [{}]}, []]))
    with pytest.raises(RequestError) as error:
        read_convsent(path)
    assert [fault.split(",")[0] for fault in error.value.faults] == [
        "record 1: ent is a number",
        "record 2: neg[0] is an object",
        "record 3 is a list",
    ]


def test_a_folder_is_read_by_its_split(tmp_path: Path) -> None:
    (tmp_path / "blender_val.json").write_bytes(FIXTURE.read_bytes())
    assert len(read_convsent(tmp_path, split="val")) == 17
    with pytest.raises(InputError, match="blender_test"):
        read_convsent(tmp_path)


def test_requests_are_the_same_after_a_round_trip(loaded: Loaded) -> None:
    for request in loaded:
        assert_round_trip(request)


KNOWN = records_of("convsent.json")


@settings(max_examples=60, deadline=None)
@given(record=broken(KNOWN))
def test_any_record_is_read_or_its_fault_told(record: Any) -> None:
    stands(read_convsent, record, KNOWN, whole=lambda record: [record, KNOWN[0]])
