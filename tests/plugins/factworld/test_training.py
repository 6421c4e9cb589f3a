"""Training cases: true where they must be, apart from the evaluation cases, and the same for equal options."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch_blocked import run_without_torch

from kedit_core.editing.datasets import open_requests
from kedit_core.errors import InputError
from kedit_core.plugins import Catalogue, Host
from kedit_core.requests import EditRequest, Probe, check_requests
from kedit_factworld.plugin import edit_cases
from kedit_factworld.training import OPTIONS, free_subjects, read_training_cases, training_cases
from kedit_factworld.wordings import RELATIONS
from kedit_factworld.world import FactKey, Statement, World, build_world


@pytest.fixture(scope="module")
def world() -> World:
    return build_world()


@pytest.fixture(scope="module")
def cases() -> list[EditRequest]:
    return training_cases(3000)


@pytest.fixture(scope="module")
def trained(world: World) -> dict[str, Statement]:
    """Every trained wording of every fact."""
    return {statement.prompt: statement for statement in world.statements(held_out=False)}


def probes(case: EditRequest) -> Iterator[Probe]:
    for group in case.locality.values():
        yield from group


def key(case: EditRequest) -> FactKey:
    assert case.subject is not None
    return case.subject, case.meta["relation"]


def subjects(cases: list[EditRequest]) -> set[Any]:
    """Subjects edited or probed."""
    return {case.subject for case in cases} | {p.meta["subject"] for case in cases for p in probes(case)}


def test_no_subject_is_one_that_an_evaluation_case_edits(cases: list[EditRequest], world: World) -> None:
    taken = {case.subject for case in edit_cases()}
    assert len(free_subjects(world)) == 197
    assert {case.subject for case in cases} == set(free_subjects(world))
    assert not subjects(cases) & taken


def test_every_answer_is_the_worlds_and_every_wording_a_trained_one(
    cases: list[EditRequest], trained: dict[str, Statement], world: World
) -> None:
    for case in cases:
        subject, relation = key(case)
        stated = trained[case.prompt]
        assert (stated.subject, stated.relation, stated.object) == (subject, relation, case.ground_truth)
        assert case.target_new in world.objects(relation) and case.target_new != case.ground_truth
        reworded = [trained[prompt] for prompt in case.rephrase_prompts]
        assert {(each.subject, each.relation) for each in reworded} == {(subject, relation)}
        assert len({case.prompt, *case.rephrase_prompts}) == 4
        for probe in probes(case):
            asked = trained[probe.prompt]
            assert (asked.subject, asked.relation) == (probe.meta["subject"], probe.meta["relation"])
            assert probe.answers == (asked.object,)
    check_requests(cases, needs_subject=True)


def test_locality_probes_are_what_their_names_say(cases: list[EditRequest]) -> None:
    for case in cases:
        subject, relation = key(case)
        near, same, own = (case.locality[name] for name in ("neighborhood", "same_relation", "relation_specificity"))
        assert same and all(p.meta["subject"] != subject and p.meta["relation"] == relation for p in (*near, *same))
        assert all(probe.answers == (case.ground_truth,) for probe in near)
        assert not {answer for probe in same for answer in probe.answers} & {case.ground_truth, case.target_new}
        assert all(p.meta["subject"] == subject and p.meta["relation"] != relation for p in own)
        assert bool(own) == (RELATIONS[relation].kind != "city")


def test_subjects_come_in_turn_and_no_case_comes_twice(cases: list[EditRequest]) -> None:
    counts = Counter(case.subject for case in cases)
    assert max(counts.values()) - min(counts.values()) == 1
    assert len({(case.prompt, case.target_new) for case in cases}) == len({case.case_id for case in cases}) == 3000


def test_equal_options_give_equal_cases_and_a_longer_run_begins_with_a_shorter() -> None:
    assert training_cases(40, seed=3) == training_cases(40, seed=3) == training_cases(90, seed=3)[:40]
    assert {case.prompt for case in training_cases(40, seed=4)} != {case.prompt for case in training_cases(40)}


def test_training_and_validation_share_no_subject_whatever_their_seeds() -> None:
    train, held = training_cases(600, seed=1, part="train"), training_cases(200, seed=7, part="validation")
    assert not subjects(train) & subjects(held)
    assert len({case.subject for case in train}) == 157 and len({case.subject for case in held}) == 40
    assert {case.meta["subject_kind"] for case in held} == {"country", "city", "person", "company"}
    assert all(any(probes(case)) for case in held)


def test_relations_left_out_are_neither_edited_nor_probed() -> None:
    kept = training_cases(150, relations="profession, instrument,capital")
    rest = training_cases(150, without=["profession", "instrument", "capital"])
    for cases, inside in ((kept, True), (rest, False)):
        seen = {case.meta["relation"] for case in cases} | {p.meta["relation"] for c in cases for p in probes(c)}
        assert all((name in ("profession", "instrument", "capital")) == inside for name in seen)
    assert {case.meta["relation"] for case in kept} == {"profession", "instrument", "capital"}


def test_facts_that_evaluation_asks_for_can_be_left_out(world: World) -> None:
    asked = {(p.meta["subject"], p.meta["relation"]) for case in edit_cases() for p in probes(case)}
    cases = training_cases(1500, probed=False)
    used = {key(case) for case in cases} | {(p.meta["subject"], p.meta["relation"]) for c in cases for p in probes(c)}
    assert not used & asked
    subjects = set(free_subjects(world))
    free = {fact for fact in world.facts if fact[0] in subjects}
    assert len(free) == 848 and len(used) == len(free - asked) == 233


def test_more_than_there_are_is_refused_and_told() -> None:
    # 10 countries, 7 wordings, 5 false continents
    options = {"relations": "continent", "part": "validation"}
    assert len({(case.prompt, case.target_new) for case in training_cases(350, **options)}) == 350
    with pytest.raises(InputError, match=r"351 different .* give 350; ask fewer"):
        training_cases(351, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "at least one"),
        ({"count": "many"}, "at least one"),
        ({"part": "test"}, "one of all, train, validation"),
        ({"relations": "capitol"}, "no relation 'capitol'; it has capital"),
        ({"relations": "industry", "probed": False}, "leave no fact"),
        ({"relations": "capital", "without": "capital"}, "leave no fact"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        training_cases(**options)


def test_the_dataset_is_registered_with_its_options(tmp_path: Path) -> None:
    host = Host(Catalogue.installed())
    cases = open_requests("factworld_training", host, options={"count": 7, "seed": 2, "part": "validation"})
    assert cases == training_cases(7, 2, "validation")
    assert len(open_requests("factworld_training", host)) == 2000
    assert host.dataset("factworld_training").options == OPTIONS
    with pytest.raises(InputError, match="made, not read"):
        open_requests(f"factworld_training:{tmp_path}", host)
    with pytest.raises(InputError, match="made, not read"):
        read_training_cases(tmp_path)


def test_making_them_needs_no_torch() -> None:
    run_without_torch("from kedit_factworld.training import training_cases\nassert len(training_cases(10)) == 10")
