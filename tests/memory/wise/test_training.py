"""Training a side memory against the plain WISE, step by step in float64; and the margin loss by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attrs import evolve
from memory.wise.wise_tools import ALICE, BOB, FRANCE, PlainWise, bank_of, editor_on, logits_of

from kedit_core.errors import MethodError
from kedit_methods_memory.wise.losses import Margins, violating
from kedit_methods_memory.wise.sharding import subspace

SUBJECT = evolve(FRANCE, meta={"irrelevant": "France"})
BOTH = evolve(ALICE, meta={"irrelevant": ["The river is long.", "Alice"]})


@pytest.mark.parametrize(
    ("family", "requests", "settings"),
    [
        ("gpt2", [FRANCE], {}),
        ("gpt2", [ALICE, BOB], {"part": "mlp_in", "act": "none"}),
        ("gpt2", [SUBJECT], {"layer": 2}),
        ("gpt_neox", [FRANCE, BOTH, BOB], {}),
        ("gpt_neox", [FRANCE], {"decay": "leaky", "weight_decay": 0.01, "rho": 0.5, "layer": 0}),
        ("gpt_neox", [BOB], {"norm_constraint": 0.02, "lr": 1.0}),
        ("t5", [ALICE, BOB], {"n_iter": 6}),
    ],
)
def test_it_is_the_plain_way(family: str, requests: list[Any], settings: dict[str, Any]) -> None:
    editor = editor_on(family, torch.float64, **settings)
    bank = bank_of(editor.compute(requests))
    delta, means, history = PlainWise(editor).edit(requests)
    assert bank.open is not None
    assert len(history) > 3 and float(delta.abs().max()) > 1e-3
    torch.testing.assert_close(bank.open.delta(), delta, rtol=0, atol=1e-8)
    assert bank.open.a_min == pytest.approx(min(means), abs=1e-8)


def test_a_second_round_goes_on_from_the_first() -> None:
    editor = editor_on("gpt2", torch.float64, n_iter=5)
    bank = bank_of(editor.edit([FRANCE, BOB], scenario="sequential", evaluate=False).patch)
    plain = PlainWise(editor_on("gpt2", torch.float64, n_iter=5))
    first, before, _ = plain.edit([FRANCE])
    second, after, _ = plain.edit([BOB], start=first)
    assert bank.open is not None and bank.open.edits == 2
    torch.testing.assert_close(bank.open.delta(), second, rtol=0, atol=1e-8)
    assert bank.a_min == pytest.approx(min(*before, *after), abs=1e-8)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "opt"])
def test_short_ways_give_the_same(family: str) -> None:
    """Rows taken up behind the projection, in parts, or run whole: one result."""
    found = []
    requests = [BOB] if family == "gemma2" else [FRANCE, ALICE]  # a masked row is no number in its float64
    for settings, budget in (({}, 2 << 30), ({"fast": False}, 2 << 30), ({}, 1)):
        editor = editor_on(family, torch.float64, n_iter=3, **settings)
        editor.memory_budget = budget
        bank = bank_of(editor.compute(requests))
        assert bank.open is not None
        found.append(bank.open.delta())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-7)


def test_only_the_subspace_moves_and_no_further_than_allowed() -> None:
    """Acceptance check 2."""
    editor = editor_on("gpt2", norm_constraint=0.01, lr=5.0)
    delta = bank_of(editor.compute([FRANCE])).memories[0].delta()
    mask = subspace((32, 80), 0.2, editor.seed, 0)
    assert 0.15 < float(mask.double().mean()) < 0.25
    assert not bool(delta[~mask].any())
    assert float(delta.abs().max()) == pytest.approx(0.01)


def test_the_margin_loss_by_hand() -> None:
    """Acceptance check 4: three routing activations of edits, two of irrelevant texts."""
    inside = torch.tensor([25.0, 18.0, 12.0], requires_grad=True)
    outside = torch.tensor([4.0, 9.0], requires_grad=True)
    pairs = torch.tensor([[0, 0], [1, 0], [2, 1]])
    loss = Margins(5.0, 20.0, 10.0).loss(inside, outside, pairs)
    # D_out: 9 is over 5. D_in: 18 and 12 are under 20. Apart: 25-4 and 18-4 are enough, 12-9 lacks 7
    assert float(loss.detach()) == pytest.approx((9 - 5) + ((20 - 18) + (20 - 12)) / 2 + (10 - (12 - 9)))
    loss.backward()
    assert inside.grad is not None and outside.grad is not None
    assert inside.grad.tolist() == [0.0, -0.5, -1.5]
    assert outside.grad.tolist() == [0.0, 2.0]


def test_the_margin_loss_is_nothing_when_all_is_well() -> None:
    inside = torch.tensor([30.0, 21.0], requires_grad=True)
    outside = torch.tensor([1.0, 5.0], requires_grad=True)
    loss = Margins(5.0, 20.0, 10.0).loss(inside, outside, torch.tensor([[0, 0], [1, 1]]))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert inside.grad is not None and outside.grad is not None
    assert not bool(inside.grad.any()) and not bool(outside.grad.any())
    assert float(violating(torch.empty(0))) == 0.0


def test_a_loss_that_is_not_finite_is_refused_with_the_remedy() -> None:
    editor = editor_on("gpt2", lr=1e30, norm_constraint=None)
    with pytest.raises(MethodError, match="lower lr"):
        editor.compute([FRANCE])


def test_an_input_projection_can_have_the_memory() -> None:
    """What is adapted is what fires: GPT-2's first projection, whose outputs go through the activation function."""
    editor = editor_on("gpt2", part="mlp_in", n_iter=25, act_ratio=0.9, alpha=0.1, gamma=4.0, rho=0.5)
    patch = editor.edit([FRANCE], evaluate=False).patch
    assert patch.operations[0].places[1] == "transformer.h.1.mlp.c_fc"  # type: ignore[union-attr]
    now = logits_of(editor, [FRANCE.prompt, str(FRANCE.meta["irrelevant"])])
    with editor.stack.suspended():
        base = logits_of(editor, [FRANCE.prompt, str(FRANCE.meta["irrelevant"])])
    assert not torch.equal(now[0], base[0]) and torch.equal(now[1], base[1])
