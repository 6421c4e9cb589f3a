"""The world, its corpus and its tokenizer are the same on every machine, and those that the models were trained on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kedit_factworld import corpus, files
from kedit_factworld.tokenizer import save_tokenizer, train_tokenizer
from kedit_factworld.wordings import RELATIONS, TWO_HOPS
from kedit_factworld.world import World, build_world

FACTS_DIGEST = "7af73a0770dbdc5acbf389e8bb6ead750323fd2d42972f18740ad7a8bd80483c"


@pytest.fixture(scope="module")
def world() -> World:
    return build_world()


def test_the_world_is_the_one_described(world: World) -> None:
    counts = {kind: len(world.subjects(kind)) for kind in ("country", "city", "person", "company")}
    assert counts == {"country": 143, "city": 60, "person": 220, "company": 40}
    assert len(world.facts) == 2072
    facts = "\n".join("|".join((*key, object_)) for key, object_ in world.facts.items())
    assert hashlib.sha256(facts.encode()).hexdigest() == FACTS_DIGEST


def test_equal_arguments_give_an_equal_world_and_others_another(world: World) -> None:
    assert build_world() == world
    assert build_world(seed=1).facts != world.facts


def test_every_fact_has_ten_wordings_three_of_them_held_out(world: World) -> None:
    for relation in RELATIONS.values():
        assert len(relation.wordings) == 10
        assert all(wording.count("{}") == 1 for wording in relation.wordings)
    assert {len(hidden) for hidden in world.held_out.values()} == {3}
    assert sum(1 for _ in world.statements(held_out=True)) == 3 * len(world.facts)
    assert sum(1 for _ in world.statements(held_out=False)) == 7 * len(world.facts)


def test_two_hop_answers_follow_from_the_facts(world: World) -> None:
    seen = list(world.two_hop_statements(held_out=False))
    unseen = list(world.two_hop_statements(held_out=True))
    assert not {s.subject for s in seen} & {s.subject for s in unseen}
    for statement in seen + unseen:
        first, second = statement.relation.split(">")
        assert (first, second) in TWO_HOPS
        middle = world.facts[statement.subject, first]
        assert world.facts[middle, second] == statement.object
    assert world.two_hop_answer("France", ("capital", "currency")) is None
    assert world.two_hop_answer("nobody", ("capital", "currency")) is None


def test_the_corpus_has_the_digest_it_is_registered_with() -> None:
    assert corpus.revision_of(corpus.corpus()) == corpus.REVISION


def test_the_corpus_says_no_held_out_wording(world: World) -> None:
    hidden = {statement.text for statement in world.statements(held_out=True)}
    said = {s.text for group in corpus.pass_groups(world, 0) for s in group}
    assert said.isdisjoint(hidden)
    facts = {(s.subject, s.relation) for group in corpus.pass_groups(world, 0) for s in group}
    assert facts >= set(world.facts)


@pytest.mark.parametrize("kind", files.MODELS)
def test_training_the_tokenizer_gives_the_shipped_one(kind: str, tmp_path: Path) -> None:
    save_tokenizer(train_tokenizer(corpus.corpus()), tmp_path)
    shipped = files.model_folder(f"factworld:{kind}")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (shipped / name).read_bytes()
