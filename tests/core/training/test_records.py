"""What is drawn from requests, and in which order."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from core.training.toy_method import TOWNS, facts

from kedit_core import Probe
from kedit_core.errors import InputError
from kedit_core.training import EditTrainingHyperParams, Examples, split
from kedit_core.training.records import alternatives, case_of
from kedit_core.training.sampler import Sampler


def examples(count: int = 12, **settings: Any) -> Examples:
    return Examples(facts(count), EditTrainingHyperParams.from_dict(settings))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_example_is_an_edit_another_wording_and_something_unrelated() -> None:
    made, draws, seen = examples(), generator(), Counter[str]()
    for _ in range(40):
        for example, index in zip(made.draw([3, 7], draws), (3, 7), strict=True):
            request = facts()[index]
            assert example.id == request.case_id and example.request == request
            assert example.inner == (request.prompt, request.target_new)
            assert example.outer[0] in request.rephrase_prompts and example.outer[1] == request.target_new
            seen[example.outer[0]] += 1
            prompt, answer = example.locality
            (source,) = [other for other in facts() if prompt in (other.prompt, other.locality["near"][0].prompt)]
            assert source.case_id not in ("3", "7")
            assert answer == (source.ground_truth if prompt == source.prompt else "Rhine")
    assert len(seen) == 4 and min(seen.values()) > 8
    assert made.draw([3, 7], generator(1)) == examples().draw([3, 7], generator(1))


@pytest.mark.parametrize("outer", ["original", "either"])
def test_the_outer_prompt_may_be_the_edits_own(outer: str) -> None:
    requests = [evolve(facts()[0], rephrase_prompts=()), *facts()[1:]]
    made, draws = Examples(requests, EditTrainingHyperParams.from_dict({"outer": outer})), generator()
    assert made.left_out == 0
    own = Counter(each.outer[0] == each.inner[0] for _ in range(30) for each in made.draw([0, 1], draws))
    assert own[False] == 0 if outer == "original" else own[False] > 5 and own[True] > 30


@pytest.mark.parametrize("locality", ["own", "both"])
def test_own_probes_may_be_what_must_not_change(locality: str) -> None:
    made, draws = examples(locality=locality), generator()
    own = Counter(each.locality[0] == "The river 3 of Peru is" for _ in range(40) for each in made.draw([3], draws))
    assert own[False] == 0 if locality == "own" else min(own.values()) > 8
    unanswered = [evolve(each, locality={"near": (Probe(prompt="The river"),)}) for each in facts()]
    with pytest.raises(InputError, match="locality=own"):
        Examples(unanswered, EditTrainingHyperParams(locality="own"))


def test_nothing_of_the_batch_is_unrelated_to_it() -> None:
    """Not by case, nor by text: records of one case, and a probe that asks what another record edits."""
    requests = facts(4)
    requests[1] = evolve(requests[1], case_id="0")
    requests[3] = evolve(requests[3], locality={"near": (Probe(prompt=requests[0].prompt, answers=("Rhine",)),)})
    made, draws = Examples(requests, EditTrainingHyperParams()), generator()
    found = {each.locality[0] for _ in range(60) for each in made.draw([0], draws)}
    allowed = {requests[2].prompt, requests[2].locality["near"][0].prompt, requests[3].prompt}
    assert found == allowed
    more = made.unrelated(made.draw([0], draws), 50, draws)
    assert {prompt for prompt, _ in more} == allowed
    with pytest.raises(InputError, match="smaller batch_size"):
        made.draw([0, 1, 2, 3], draws)


def test_the_one_case_that_is_unrelated_is_always_found() -> None:
    """However unlikely it is to be drawn: a training must not end by chance in the middle."""
    others = facts(2, prefix="Now ")
    requests = [evolve(each, case_id="one") for each in facts(600)] + others
    made, draws = Examples(requests, EditTrainingHyperParams(batch_size=2)), generator()
    found = Counter(each.locality[0] for _ in range(100) for each in made.draw([3, 7], draws))
    probes = {"The river 0 of France is", "The river 1 of Chad is"}
    assert set(found) == {each.prompt for each in others} | probes and min(found.values()) > 25
    batches = [examples(12, batch_size=11).draw(range(11), draws) for _ in range(20)]
    left = {facts()[11].prompt, facts()[11].locality["near"][0].prompt}
    assert {each.locality[0] for batch in batches for each in batch} == left


def test_records_without_what_is_needed_are_left_out() -> None:
    requests = [*facts(3), evolve(facts(4)[3], rephrase_prompts=(facts(4)[3].prompt,))]
    made = Examples(requests, EditTrainingHyperParams())
    assert (made.count, made.left_out) == (3, 1)
    with pytest.raises(InputError, match="none of 1 requests"):
        Examples(requests[3:], EditTrainingHyperParams())
    bare = [evolve(each, ground_truth=None, locality={}) for each in facts(3)]
    with pytest.raises(InputError, match="known answers"):
        Examples(bare, EditTrainingHyperParams())
    with pytest.raises(InputError, match=r"a batch's 1, .* and 1 have"):
        Examples(facts(1), EditTrainingHyperParams())
    with pytest.raises(InputError, match=r"a batch's 12, .* and 12 have"):
        examples(12, batch_size=50)
    assert Examples(facts(12), EditTrainingHyperParams(batch_size=50), unrelated=facts(1, prefix="Now "))
    assert Examples(facts(1), EditTrainingHyperParams(), unrelated=facts(12)[5:]).draw([0], generator())


def test_new_answers_of_the_same_relation() -> None:
    made, draws = examples(12, alternatives_from="relation"), generator()
    drawn = Counter(each.inner[1] for _ in range(200) for each in made.draw([1], draws))
    same = [each for each in facts() if each.meta["relation"] == "capital"]
    wanted = {text for each in same for text in (each.target_new, each.ground_truth) if text} - {
        facts()[1].ground_truth
    }
    assert set(drawn) == wanted and min(drawn.values()) > 10
    assert all(each.inner[1] == each.outer[1] for each in made.draw([1, 2], draws))
    with pytest.raises(InputError, match="'kind' in its meta"):
        examples(alternatives_from="kind")
    only = [evolve(each, target_new="Rome", ground_truth="Rome") for each in facts(2)]
    assert alternatives(only, "relation") == [(), ()]
    with pytest.raises(InputError, match="none of 2"):
        Examples(only, EditTrainingHyperParams(alternatives_from="relation"))


def test_validation_is_always_the_same() -> None:
    made = examples()
    batches = made.batches(5, 7, seed=2)
    assert [len(each) for each in batches] == [5, 2]
    assert batches == examples().batches(5, 7, seed=2) != made.batches(5, 7, seed=3)
    assert len({each.id for batch in batches for each in batch}) == 7


def test_a_split_is_by_case_and_ignores_order() -> None:
    requests = [*facts(10), *facts(10)]
    kept, held = split(requests, 0.3, seed=1)
    assert len(held) == 6 and len(kept) == 14
    assert not {case_of(each) for each in kept} & {case_of(each) for each in held}
    again = split(requests[::-1], 0.3, seed=1)[1]
    assert {case_of(each) for each in again} == {case_of(each) for each in held}
    with pytest.raises(InputError, match="1 case cannot be split"):
        split(facts(1), 0.5, seed=0)
    half = [number % 2 == 0 for number in range(10)]
    held = split(facts(10), 0.5, 1, half)[1]
    assert len(held) == 2 and {case_of(each) for each in held} <= {"0", "2", "4", "6", "8"}
    held = split(requests, 0.3, 1, [True] * 20)[1]
    assert {case_of(each) for each in again} == {case_of(each) for each in held}
    assert set(TOWNS) >= {each.target_new for each in held}


# ---------------------------------------------------------------- the sampler
def test_a_sampler_takes_each_record_once_an_epoch() -> None:
    sampler = Sampler(11, 3, seed=1)
    epochs = [[i for number in range(3) for i in sampler.batch(3 * epoch + number)[0]] for epoch in range(4)]
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert Sampler(11, 3, seed=1).batch(7)[0] == sampler.batch(7)[0] != Sampler(11, 3, seed=2).batch(7)[0]
    whole = Sampler(11, 3, seed=1, keep_incomplete=True)
    assert sorted(i for number in range(4) for i in whole.batch(number)[0]) == list(range(11))
    assert Sampler(2, 5, seed=1).batch(0)[0] in ([0, 1], [1, 0])
    with pytest.raises(InputError):
        Sampler(0, 3, seed=1)


def test_each_micro_batch_has_random_numbers_of_its_own() -> None:
    """Whoever draws it, and whatever was drawn before it."""
    draws = [float(torch.rand((), generator=Sampler(11, 3, seed=1).batch(number)[1])) for number in range(30)]
    assert len(set(draws)) == 30
    sampler = Sampler(11, 3, seed=1)
    for number in reversed(range(30)):
        assert float(torch.rand((), generator=sampler.batch(number)[1])) == draws[number]


def test_the_order_of_the_original() -> None:
    sampler = Sampler(11, 2, seed=4, numpy_order=True, keep_incomplete=True)
    order = [i for number in range(6) for i in sampler.batch(number)[0]]
    assert order == np.random.default_rng(4).permutation(11).tolist()
    assert [i for number in range(6, 12) for i in sampler.batch(number)[0]] != order
