"""Where patches meet: facts as text, weights by plain whole matrices, modules, routers, order."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from attrs import evolve
from core.patches.patch_kit import FACT, loose_patch, near_key, whisper

from kedit_core.comparing.conflicting import PatchPair, conflicts
from kedit_core.errors import BaseMismatchError, InputError
from kedit_core.patches import BaseTensor, EditPatch, LowRankDelta, Operation, PrivateRequests, Replace, digests_of

SHAPES = {"w": (6, 8), "v": (4, 4)}


def column(index: int, size: int) -> torch.Tensor:
    return torch.eye(size)[:, index : index + 1]


def writes(out: int, key: int, place: str = "w", scale: float = 1.0) -> LowRankDelta:
    """Adds ``scale`` at one element: answers to input ``key`` and writes output ``out``."""
    rows, columns = SHAPES[place]
    return LowRankDelta(place, scale * column(out, rows), column(key, columns).T)


def says(prompt: str, target: str, subject: str | None = None) -> dict[str, Any]:
    return {"prompt": prompt, "target_new": target, "subject": subject}


def patch(*operations: Operation, facts: Any = (), seed: int = 0, **more: Any) -> EditPatch:
    return loose_patch(operations, SHAPES, requests=facts, seed=seed, **more)


def pair(one: EditPatch, other: EditPatch, base: Any = None) -> PatchPair:
    report = conflicts([one, other], base, names=["one", "other"])
    (found,) = report.pairs
    assert found.verdict.startswith("one and other: ")
    assert json.loads(json.dumps(report.to_dict()))["pairs"][0]["verdict"] == found.verdict
    return found


# ---------------------------------------------------------------------- facts


def test_a_contradiction_and_a_duplicate() -> None:
    one = patch(writes(0, 0), facts=[says("The capital of  France is ", "Oslo"), says("Two and two is", "four")])
    other = patch(writes(1, 1), facts=[says("the capital of France is", "Cairo"), says("Two and two is", " Four ")])
    facts = pair(one, other).facts
    (contradiction,), (duplicate,) = facts.contradictions, facts.duplicates
    assert (contradiction.prompt, contradiction.first, contradiction.second) == (
        "The capital of  France is ",
        ("Oslo",),
        ("Cairo",),
    )
    assert (duplicate.first, duplicate.second) == (("four",), ("Four",)) and facts.known == "compared"
    verdict = pair(one, other).verdict
    assert "contradict one another: 'The capital of  France is ' to 'Oslo', and 'Cairo'" in verdict
    assert "the same edit twice: 'Two and two is' to 'four', and 'Four'" in verdict


def test_composed_and_decomposed_letters_are_the_same_text() -> None:
    one, other = (
        patch(writes(0, 0), facts=[says("Caf\u00e9 is", "a")]),
        patch(writes(1, 1), facts=[says("Cafe\u0301 is", "b")]),
    )
    assert len(pair(one, other).facts.contradictions) == 1


def test_other_words_are_not_seen_but_their_subject_is() -> None:
    one = patch(writes(0, 0), facts=[says("The capital of France is", "Oslo", "France"), says("Same", "x", "Spain")])
    other = patch(writes(1, 1), facts=[says("France is governed from", "Cairo", "france"), says("Same", "x", "Spain")])
    found = pair(one, other)
    assert found.facts.contradictions == () and found.facts.subjects == ("France",)
    assert "other prompts about the same subject ('France'), maybe the same fact" in found.verdict


def test_private_facts_are_compared_by_their_hashes_alone() -> None:
    facts = [{**FACT, "subject_span": None, "ground_truth": None, "case_id": None}]
    hidden = patch(writes(0, 0), facts=PrivateRequests.of(facts))
    assert pair(hidden, patch(writes(1, 1), facts=facts)).facts.known == "equal hashes"
    assert pair(patch(writes(1, 1), facts=facts), hidden).share_facts
    unknown = pair(hidden, patch(writes(1, 1), facts=[says("The capital of Ruritania is", "Oslo")]))
    assert unknown.facts.known == "private" and not unknown.share_facts
    assert "facts not compared, since they are private" in unknown.verdict


# ---------------------------------------------------------------------- places


@pytest.mark.parametrize(
    ("mine", "theirs", "effect", "cosine"),
    [
        (writes(0, 0), writes(0, 0, scale=3.0), "add up", 1.0),
        (writes(0, 0), writes(0, 0, scale=-0.5), "cancel", -1.0),
        (writes(0, 0), writes(1, 0), "share inputs", 0.0),
        (writes(0, 0), writes(0, 1), "share outputs", 0.0),
        (writes(0, 0), writes(1, 1), "lie apart", 0.0),
        (writes(0, 0), writes(0, 0, scale=0.0), "lie apart", None),
        (Replace("w", torch.ones(6, 8)), Replace("w", torch.zeros(6, 8)), "replaced", None),
        (Replace("w", torch.ones(6, 8)), writes(0, 0), "on a replaced weight", None),
    ],
)
def test_what_changes_of_a_weight_do_together(
    mine: Operation, theirs: Operation, effect: str, cosine: float | None
) -> None:
    found = pair(patch(mine), patch(theirs, seed=1))
    (meeting,) = found.weights
    assert (meeting.place, meeting.effect) == ("w", effect)
    assert meeting.cosine == (None if cosine is None else pytest.approx(cosine, abs=1e-12))
    assert "both change w" in found.verdict and "made apart, neither with the other" in found.verdict
    warned = conflicts([patch(mine), patch(theirs, seed=1)]).warnings
    assert bool(warned) == (effect not in ("share outputs", "lie apart"))


def test_the_worst_place_is_told() -> None:
    one = patch(writes(0, 0), writes(0, 0, "v"))
    other = patch(writes(1, 1), writes(0, 0, "v", scale=-1.0))
    found = pair(one, other)
    assert [each.effect for each in found.weights] == ["lie apart", "cancel"]
    assert "both change v: the changes cancel in part (cosine -1.00), and 1 more weight" in found.verdict


def test_nothing_in_common() -> None:
    found = pair(patch(writes(0, 0), facts=[FACT]), patch(writes(0, 0, "v"), facts=[says("Other", "x")]))
    assert found.verdict == "one and other: nothing in common: no weight, no module, no prompt"
    assert not found.share_places and not found.share_facts and conflicts([patch(writes(0, 0)), patch()]).warnings == ()


def test_modules_and_routers() -> None:
    one, other = patch(near_key(["a.b"], 4), whisper()), patch(near_key(["a.b"], 4, seed=1), whisper("Hark. "))
    found = pair(one, other)
    (meeting,) = found.modules
    assert meeting.places == ("a.b", "a.b") and meeting.kinds == ("test.near_key", "test.near_key")
    assert found.routers == ("test.whisper", "test.whisper") and found.share_places
    assert "the lower one acts first" in found.verdict and "the lower one's text comes first" in found.verdict
    nested = pair(patch(near_key(["a"], 4)), patch(near_key(["a.b"], 4)))
    assert nested.modules[0].places == ("a", "a.b") and "the inner one acts first" in nested.verdict
    assert pair(patch(near_key(["a.b"], 4)), patch(near_key(["a.bc"], 4))).modules == ()
    assert pair(patch(near_key(["a.b"], 4)), patch(whisper())).routers is None


def test_order() -> None:
    below = patch(writes(0, 0))
    above = patch(writes(1, 1), parents=(below.id,))
    found = conflicts([below, above])
    assert found.order is None and found.pairs[0].parent and "was made on top of" in found.pairs[0].verdict
    upside_down = conflicts([above, below], names=["above", "below"])
    assert upside_down.order is not None and upside_down.pairs[0].upside_down
    assert "above was made on top of below and must stand above it" in upside_down.pairs[0].verdict
    assert upside_down.warnings == (upside_down.pairs[0].verdict,)
    assert "which is not on this model" in str(conflicts([above, patch(writes(2, 2))]).order)


def test_three_patches_are_three_pairs() -> None:
    found = conflicts([patch(writes(i, 0), facts=[says("It is", str(i))]) for i in range(3)])
    assert [(each.first, each.second) for each in found.pairs] == [(0, 1), (0, 2), (1, 2)]
    assert len(found.contradictions) == 3


# ---------------------------------------------------------------------- bases


def based(weight: torch.Tensor, name: str | None = None, place: str = "w", seed: int = 0) -> EditPatch:
    made = patch(writes(0, 0, place), seed=seed)
    tensor = BaseTensor(shape=SHAPES[place], layout="out_in", sha256=digests_of(weight))
    return evolve(made, base=evolve(made.base, name=name, tensors={place: tensor}))


def test_other_bases_are_refused() -> None:
    weight = torch.randn(6, 8)
    with pytest.raises(InputError, match="one and other were made for different bases \\(they differ at w\\)"):
        pair(based(weight), based(weight + 1))
    with pytest.raises(InputError, match=r"is for a Nothing and .* for a Something"):
        made = based(weight)
        conflicts([made, evolve(made, base=evolve(made.base, architecture="Something"))])
    with pytest.raises(InputError, match="same patch was given twice"):
        conflicts([made, made], names=["one", "other"])
    with pytest.raises(InputError, match="two patches or more"):
        conflicts([made])
    with pytest.raises(BaseMismatchError, match="other values in the base given"):
        pair(based(weight), based(weight, seed=1), {"w": weight + 1}.__getitem__)
    assert pair(based(weight, "org/one"), based(weight, "org/two", seed=1)).weights  # one model under two names


def test_bases_that_cannot_be_told_apart() -> None:
    found = conflicts([based(torch.randn(6, 8), "org/one"), based(torch.randn(4, 4), "org/two", place="v")])
    assert "whether these are the same model cannot be told" in found.notes[0]


def test_a_replaced_weight_beside_its_base() -> None:
    """With the base, what a replace changes has a direction as any delta has."""
    weight = torch.randn(6, 8)
    changed = weight.clone()
    changed[0, 0] += 1.0
    one, other = based(weight), based(weight, seed=1)
    other = evolve(other, operations=(Replace("w", changed),))
    (meeting,) = pair(one, other, {"w": weight}.__getitem__).weights
    assert meeting.effect == "on a replaced weight" and meeting.cosine == pytest.approx(1.0, abs=1e-5)
