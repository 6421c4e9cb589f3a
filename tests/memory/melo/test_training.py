"""Training a block: the fast way gives what the published training of the whole adapter gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from attrs import evolve
from memory_codebook_tools import FACTS, editor_on
from torch import Tensor
from torch.nn.functional import cross_entropy

from kedit_core import Editor
from kedit_core.errors import MethodError
from kedit_methods_memory.facts import Fact, facts_of
from kedit_methods_memory.hparams.melo import MeloHyperParams
from kedit_methods_memory.melo.method import Places
from kedit_methods_memory.melo.training import Problem, start, train
from kedit_methods_memory.projections import Projection

RANK, BLOCKS = 2, 3
Pairs = list[tuple[Tensor, Tensor]]


def hparams_of(**settings: Any) -> MeloHyperParams:
    usual = {
        "scope_layer": 0,
        "layers": [1, 2],
        "rank": RANK,
        "blocks": BLOCKS,
        "lr": 0.02,
        "num_iter": 7,
        "lr_step": 3,
    }
    return MeloHyperParams.from_dict({**usual, **settings})


def plain(
    editor: Editor, targets: Sequence[Projection], facts: Sequence[Fact], wide: Pairs, block: int, h: MeloHyperParams
) -> Pairs:
    """By the letter: all of A ``[in, R]`` and B ``[R, out]`` are parameters, block b's columns and rows are picked from
    them, each times sqrt(R/p); the whole model, one unpadded row after another; Adam with torch's own StepLR."""
    columns = slice(block * RANK, (block + 1) * RANK)
    root = h.factor**0.5
    parameters = [(a.clone().requires_grad_(), b.clone().requires_grad_()) for a, b in wide]
    handles = []
    for target, (a, b) in zip(targets, parameters, strict=True):

        def add(_: object, args: tuple[Tensor, ...], output: Tensor, a: Tensor = a, b: Tensor = b) -> Tensor:
            both: Tensor = output + (args[0] @ (root * a[:, columns])) @ (root * b[columns])
            return both

        handles.append(target.module.register_forward_hook(add))
    flat = [each for pair in parameters for each in pair]
    adam = torch.optim.Adam(flat, lr=h.lr)
    schedule = torch.optim.lr_scheduler.StepLR(adam, h.lr_step, h.lr_gamma)
    tokens = sum(len(fact.target) for fact in facts)
    for _ in range(h.num_iter):
        adam.zero_grad()
        for fact in facts:
            if editor.adapter.is_encoder_decoder:
                logits = editor.model(input_ids=torch.tensor([fact.prompt]), labels=torch.tensor([fact.target])).logits[
                    0
                ]
            else:
                logits = editor.model(input_ids=torch.tensor([[*fact.prompt, *fact.target]])).logits[
                    0, len(fact.prompt) - 1 : -1
                ]
            loss = cross_entropy(logits, torch.tensor(fact.target), reduction="sum") / tokens
            loss.backward(inputs=flat)  # type: ignore[no-untyped-call]
        adam.step()
        schedule.step()
    for handle in handles:
        handle.remove()
    return [(a.detach(), b.detach()) for a, b in parameters]


def adapter(targets: Sequence[Projection], facts: Sequence[Fact], h: MeloHyperParams, block: int) -> Pairs:
    """A whole adapter whose blocks hold something already, but for one that begins as ours does."""
    draw = torch.Generator().manual_seed(4)
    wide = []
    for target in targets:
        a = torch.randn(target.width, BLOCKS * RANK, generator=draw, dtype=torch.float64)
        b = torch.randn(BLOCKS * RANK, target.out, generator=draw, dtype=torch.float64)
        columns = slice(block * RANK, (block + 1) * RANK)
        a[:, columns], b[columns] = start(target, facts, h, 0)
        wide.append((a, b))
    return wide


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gpt2", {}),
        ("gpt2", {"lora_factor": "one", "parts": ["attn_out"]}),
        ("gpt_neox", {"parts": ["mlp_out"]}),
        ("t5", {"layers": [1], "decoder_layers": [0, 1]}),
    ],
)
def test_fast_training_is_plain_training_of_the_whole_adapter(family: str, settings: dict[str, Any]) -> None:
    """Also acceptance 3: the other blocks' columns and rows come out as they went in."""
    editor, h = editor_on(family, "melo", torch.float64, scope_layer=0, layers=[1]), hparams_of(**settings)
    targets, facts = Places.of(editor.adapter, h).targets, facts_of(editor.context().tokens, FACTS)
    block = 1
    before = adapter(targets, facts, h, block)
    wanted = plain(editor, targets, facts, before, block, h)
    forward = editor.context().forward
    columns = slice(block * RANK, (block + 1) * RANK)
    for ours in (
        train(forward, targets, facts, h, 0),
        train(forward, targets, facts, h, 0, memory_budget=1),  # a row at a time, gradients added up
        train(forward, targets, facts, evolve(h, fast=False), 0),
    ):
        for (a, b), mine_a, mine_b in zip(wanted, ours.a, ours.b, strict=True):
            torch.testing.assert_close(mine_a, a[:, columns], rtol=0, atol=1e-8)
            torch.testing.assert_close(mine_b, b[columns], rtol=0, atol=1e-8)
            assert float(mine_b.abs().max()) > 1e-3
    for (a, b), (old_a, old_b) in zip(wanted, before, strict=True):
        others = [i for i in range(BLOCKS * RANK) if i // RANK != block]
        assert torch.equal(a[:, others], old_a[:, others]) and torch.equal(b[others], old_b[others])


def test_a_block_begins_small_and_without_effect() -> None:
    """Acceptance 6: max |A| <= 1/sqrt(R), B zero; the same for the same batch, another for another."""
    editor, h = editor_on("gpt2", "melo", scope_layer=0, layers=[1]), hparams_of(blocks=40)
    target, facts = Places.of(editor.adapter, h).targets[0], facts_of(editor.context().tokens, FACTS)
    a, b = start(target, facts, h, 0)
    bound = (40 * RANK) ** -0.5
    assert a.shape == (target.width, RANK) and b.shape == (RANK, target.out) and not b.any()
    assert 0.8 * bound < float(a.abs().max()) <= bound and float(a.min()) < 0
    assert torch.equal(start(target, facts, h, 0)[0], a)
    assert not torch.equal(start(target, facts, h, 1)[0], a) and not torch.equal(start(target, facts[:2], h, 0)[0], a)


def test_losses_are_each_facts_own() -> None:
    """Mean over its tokens, whatever else is in the batch."""
    editor, h = editor_on("gpt2", "melo", scope_layer=0, layers=[1]), hparams_of(num_iter=1, lr=1e-9)
    targets, facts = Places.of(editor.adapter, h).targets, facts_of(editor.context().tokens, FACTS)
    found = train(editor.context().forward, targets, facts, h, 0).losses
    for fact, loss in zip(facts, found, strict=True):
        with torch.no_grad():
            logits = editor.model(input_ids=torch.tensor([[*fact.prompt, *fact.target]])).logits
        own = cross_entropy(logits[0, len(fact.prompt) - 1 : -1], torch.tensor(fact.target))
        assert loss == pytest.approx(float(own), rel=1e-5)


def test_only_the_blocks_above_are_run() -> None:
    editor, h = editor_on("gpt2", "melo", scope_layer=0, layers=[1]), hparams_of(layers=[2])
    targets, facts = Places.of(editor.adapter, h).targets, facts_of(editor.context().tokens, FACTS)
    problem = Problem(editor.context().forward, targets, facts, h, None)
    assert [each.fast for each in problem.passes] == [True]
    calls: list[int] = []
    handle = editor.adapter.block(0).register_forward_pre_hook(lambda *_: calls.append(1))
    list(problem.losses([start(target, facts, h, 0) for target in targets]))
    handle.remove()
    assert not calls


def test_a_loss_that_is_not_finite_stops_the_edit() -> None:
    editor, h = editor_on("gpt2", "melo", scope_layer=0, layers=[1]), hparams_of(lr=1e30)
    targets, facts = Places.of(editor.adapter, h).targets, facts_of(editor.context().tokens, FACTS)
    with pytest.raises(MethodError, match="lower lr"):
        train(editor.context().forward, targets, facts, h, 0)
