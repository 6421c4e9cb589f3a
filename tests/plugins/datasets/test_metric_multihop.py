"""MQuAKE: edit-wise, instance-wise and multi-hop accuracy, and what the unedited model recalls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from attrs import evolve
from metric_tools import ALONE, told
from plugins.datasets.reader_tools import FIXTURES, records_of
from plugins.datasets.scripted_answers import Scripted, read_ahead_is_enough, same_when_alone

from kedit_core import Editor, EditRequest, Probe
from kedit_core.errors import InputError
from kedit_core.testing.tiny import tiny
from kedit_datasets.metrics.multihop import MultiHopMetrics
from kedit_datasets.readers.mquake import read_mquake

EDIT, INSTANCE, HOPS, RECALL = (f"mquake.{name}" for name in ("edit_wise", "instance_wise", "multi_hop", "base_recall"))
RECORDS = records_of("mquake.json")


@pytest.fixture(scope="module")
def dataset() -> list[EditRequest]:
    return list(read_mquake(FIXTURES / "mquake.json"))


def old_world(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What a model that knows all old facts says, taken from the records themselves."""
    said: dict[str, str] = {}
    for record in records:
        said |= dict.fromkeys(record["questions"], f" {record['answer']}.")
        for rewrite in record["requested_rewrite"]:
            said[rewrite["prompt"].replace("{}", rewrite["subject"])] = f" {rewrite['target_true']['str']}."
        for hop in record["single_hops"]:
            said |= {hop[name]: f" {hop['answer']}.\n" for name in ("question", "cloze") if hop.get(name)}
    return said


def new_world(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What a perfectly edited model says."""
    said: dict[str, str] = {}
    for record in records:
        said |= dict.fromkeys(record["questions"], f" {record['new_answer']}.")
        for hop in record["new_single_hops"]:
            said |= {hop[name]: f" the {hop['answer']}.\n" for name in ("question", "cloze") if hop.get(name)}
        for rewrite in record["requested_rewrite"]:
            said[rewrite["prompt"].replace("{}", rewrite["subject"])] = f" {rewrite['target_new']['str']}."
    return said


def measure(requests: Sequence[EditRequest], base: Scripted, edited: Scripted) -> Mapping[str, Any]:
    context = told("mquake", requests=requests)
    return MultiHopMetrics().evaluate(context=context, requests=requests, base=base, edited=edited)


# ---------------------------------------------------------------------- the dataset as it is
def test_a_perfect_model_scores_one_everywhere(dataset: list[EditRequest]) -> None:
    base = Scripted(old_world(RECORDS), otherwise=" nothing", is_base=True)
    found = measure(dataset, base, Scripted(new_world(RECORDS)))
    assert {name: found[name].value for name in (EDIT, INSTANCE, HOPS)} == {EDIT: 1.0, INSTANCE: 1.0, HOPS: 1.0}
    assert found[RECALL].value == 1.0 and found[RECALL].parts["multi_hop"] == 1.0
    assert set(found[EDIT].cases) == {str(record["case_id"]) for record in RECORDS}
    assert found[HOPS].parts == {"base_recalled": 1.0}
    assert found[HOPS].tag == f"gen_free.question-only.EM_any_question.batch.{len(dataset)}+merged"
    assert found[EDIT].tag == f"gen_free.question-only.EM.batch.{len(dataset)}+merged"


def test_an_unedited_model_recalls_what_was_and_nothing_new(dataset: list[EditRequest]) -> None:
    record, requests = RECORDS[0], [request for request in dataset if request.case_id == "1561"]
    model = Scripted(old_world([record]), otherwise=" nothing")
    found = measure(requests, model, model)
    assert (found[EDIT].value, found[INSTANCE].value, found[HOPS].value) == (0.0, 0.0, 0.0)
    assert found[RECALL].value == 1.0


def test_cases_measured_alone_combine_to_the_whole(dataset: list[EditRequest]) -> None:
    base = Scripted(old_world(RECORDS[::2]), otherwise=" nothing", is_base=True)
    edited = Scripted(new_world(RECORDS[1:]), otherwise=" nothing")
    same_when_alone(lambda some: measure(some, base, edited), dataset)
    found = measure(dataset, base, edited)
    assert 0.0 < (found[RECALL].value or 0.0) < 1.0 and 0.0 < (found[HOPS].value or 0.0) < 1.0


def test_all_is_asked_ahead_and_each_model_only_its_own(dataset: list[EditRequest]) -> None:
    base, edited = (Scripted(otherwise=" nothing", is_base=flag) for flag in (True, False))
    read_ahead_is_enough(MultiHopMetrics(), told("mquake"), dataset, base, edited)
    assert ("generate", 50) in {kind for kind, _ in base.asked}
    new_only = {hop["question"] for hop in RECORDS[0]["new_single_hops"]} - {
        hop["question"] for hop in RECORDS[0]["single_hops"]
    }
    asked = {prompt for _, prompt in base.asked}
    assert new_only and not new_only & asked and RECORDS[0]["questions"][0] in asked


# ---------------------------------------------------------------------- one case by hand
def hop(question: str, answer: str, cloze: str | None = None, *aliases: str) -> dict[str, Any]:
    return {"question": question, "cloze": cloze, "answer": answer, "answer_alias": list(aliases)}


def case(**about: Any) -> list[EditRequest]:
    """A case of two rewrites; what belongs to it as a whole is on the last."""
    questions = tuple(Probe(prompt=f"Q{n}?", answers=("Oslo", "Christiania"), meta={"any_of": True}) for n in range(3))
    whole: dict[str, Any] = {
        "answer": "Rome",
        "answer_alias": ["Roma"],
        "single_hops": [hop("old one?", "Italy", "old one is"), hop("old two?", "Rome", "old two is")],
        "new_single_hops": [hop("new one?", "Norway", "new one is", "Norge"), hop("new two?", "Oslo", "new two is")],
    }
    first = EditRequest(
        prompt="A is", target_new="Norway", aliases=("Norge",), case_id="c", meta={"mquake": {"edit": 0}}
    )
    last = EditRequest(
        prompt="B is",
        target_new="Oslo",
        case_id="c",
        portability={"multi_hop": questions},
        meta={"mquake": {**whole, **about}},
    )
    return [first, last]


NOTHING = Scripted(otherwise=" nothing", is_base=True)


def test_rewrites_are_a_share_of_the_case() -> None:
    found = measure(case(), NOTHING, Scripted({"A is": " Norge."}, otherwise=" nothing"))
    assert found[EDIT].cases == {"c": 0.5}
    assert [output["score"] for output in found[EDIT].outputs] == [1.0, 0.0]


def test_any_of_the_questions_is_enough_and_an_alias_counts() -> None:
    assert measure(case(), NOTHING, Scripted({"Q2?": " Christiania"}, otherwise=" no"))[HOPS].value == 1.0
    assert measure(case(), NOTHING, Scripted({"Q2?": " Rome"}, otherwise=" no"))[HOPS].value == 0.0
    assert measure(case(), NOTHING, Scripted({"Q2?": " Oslo, I think"}, otherwise=" no"))[HOPS].value == 0.0


def test_all_hops_must_be_known_each_in_either_wording() -> None:
    mixed = Scripted({"new one?": " Norge", "new two is": " Oslo"}, otherwise=" no")
    found = measure(case(), NOTHING, mixed)[INSTANCE]
    assert found.value == 1.0 and found.parts == {"question": 0.0, "cloze": 0.0}
    one = measure(case(), NOTHING, Scripted({"new one?": " Norway", "new one is": " Norway"}, otherwise=" no"))
    assert one[INSTANCE].value == 0.0
    asked = measure(case(), NOTHING, Scripted({"new one?": " Norway", "new two?": " Oslo"}, otherwise=" no"))
    assert asked[INSTANCE].parts == {"question": 1.0, "cloze": 0.0}


def test_hops_without_a_cloze_are_questions_alone() -> None:
    requests = case(new_single_hops=[hop("new one?", "Norway"), hop("new two?", "Oslo", "new two is")])
    found = measure(requests, NOTHING, Scripted({"new one?": " Norway", "new two is": " Oslo"}, otherwise=" no"))
    assert found[INSTANCE].value == 1.0 and "cloze" not in found[INSTANCE].parts


def test_the_base_recall_condition_is_reported_beside() -> None:
    known = case()
    unknown = [
        evolve(request, case_id="d") for request in case(single_hops=[hop("never heard?", "x", "never heard is")])
    ]
    base = Scripted({"old one?": " Italy", "old two is": " Rome", "Q0?": " Roma"}, otherwise=" no", is_base=True)
    right = Scripted({"Q0?": " Oslo", "A is": " Norway", "B is": " Oslo"}, otherwise=" no")
    found = measure([*known, *unknown], base, right)
    assert found[RECALL].cases == {"c": 1.0, "d": 0.0} and found[RECALL].parts["multi_hop"] == 1.0
    assert found[HOPS].case_parts["base_recalled"] == {"c": 1.0}
    assert found[EDIT].case_parts["base_recalled"] == {"c": 1.0}
    assert found[INSTANCE].case_parts["base_recalled"] == {"c": 0.0}
    none = measure(unknown, base, right)
    assert "base_recalled" not in none[HOPS].parts and none[HOPS].value == 1.0


def test_what_a_case_lacks_is_left_out() -> None:
    (first, last) = case(single_hops=[], new_single_hops=[])
    found = measure([first, evolve(last, portability={})], NOTHING, Scripted(otherwise=" no"))
    assert [found[name].value for name in (INSTANCE, HOPS, RECALL)] == [None] * 3
    assert [found[name].left_out for name in (EDIT, INSTANCE, HOPS, RECALL)] == [0, 1, 1, 1]


def test_nothing_is_asked_or_told_unless_wanted_and_there() -> None:
    plugin, model = MultiHopMetrics(), Scripted()
    plugin.read_ahead(context=told("ripple"), requests=case(), answers=model)
    assert plugin.evaluate(context=told("ripple"), requests=case(), base=model, edited=model) == {}
    bare = [EditRequest(prompt="x", target_new="y")]
    assert plugin.evaluate(context=told("mquake"), requests=bare, base=model, edited=model) == {}
    assert model.asked == []
    infos = plugin.register_metrics()
    assert [info.name for info in infos] == [EDIT, INSTANCE, HOPS, RECALL] and all(info.on_request for info in infos)


@pytest.mark.parametrize(
    "about", [{"single_hops": ["text"]}, {"new_single_hops": [{"question": "q"}]}, {"single_hops": [hop("", "x")]}]
)
def test_odd_material_is_refused_before_anything_is_read(about: dict[str, Any]) -> None:
    model = Scripted()
    with pytest.raises(InputError, match=r'case \'c\'.*each with a "question" and an "answer"'):
        MultiHopMetrics().read_ahead(context=told("mquake"), requests=case(**about), answers=model)
    with pytest.raises(InputError, match="an object"):
        request = EditRequest(prompt="x", target_new="y", meta={"mquake": 3})
        MultiHopMetrics().read_ahead(context=told("mquake"), requests=[request], answers=model)
    assert model.asked == []


def test_with_a_real_model(dataset: list[EditRequest]) -> None:
    editor = Editor(*tiny("gpt2"), catalogue=ALONE, plugins=[MultiHopMetrics()])
    requests = [request for request in dataset if request.case_id == "1561"]
    evaluation = editor.evaluate(requests, metrics=["mquake"])
    said = editor.generate(RECORDS[0]["questions"][1], max_new_tokens=50)
    output = evaluation[HOPS].outputs[1]
    assert output["prompt"] == RECORDS[0]["questions"][1] and str(said).strip().startswith(output["edited"])
    assert evaluation[EDIT].value == 0.0
