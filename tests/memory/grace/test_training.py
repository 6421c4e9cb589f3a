"""Training values: the fast ways give what plain training through hooks gives."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from memory_codebook_tools import FACTS, editor_on
from torch import Tensor
from torch.nn.functional import cross_entropy

from kedit_core import Editor
from kedit_core.errors import MethodError
from kedit_methods_memory.facts import Fact, facts_of
from kedit_methods_memory.grace.training import Problem, train
from kedit_methods_memory.hparams.grace import GraceHyperParams
from kedit_methods_memory.projections import projection

LAYER = 1


def plain(editor: Editor, fact: Fact, start: Tensor, replacement: str, part: str, steps: int, lr: float) -> Tensor:
    """One value by the letter: the whole model with a hook, unpadded, and the loss at the target's tokens."""
    place = projection(editor.adapter, LAYER, part)
    value = start.double().clone().requires_grad_()
    named, first = {"input_ids": torch.tensor([[*fact.prompt, *fact.target]])}, len(fact.prompt) - 1
    if editor.adapter.is_encoder_decoder:
        named, first = {"input_ids": torch.tensor([fact.prompt]), "labels": torch.tensor([fact.target])}, 0
    last = len(fact.prompt) - 1

    def replace(_: object, __: object, output: Tensor) -> Tensor:
        rows = output.reshape(-1, output.shape[-1]).clone()
        where = {"replace_last": slice(last, last + 1), "replace_prompt": slice(0, last), "replace_all": slice(None)}
        rows[where[replacement]] = value
        return rows.view(output.shape)

    adam = torch.optim.Adam([value], lr=lr)
    handle = place.module.register_forward_hook(replace)
    try:
        for _ in range(steps):
            adam.zero_grad()
            logits = editor.model(**named).logits[0, first : first + len(fact.target)]
            cross_entropy(logits, torch.tensor(fact.target)).backward(inputs=[value])  # type: ignore[no-untyped-call]
            adam.step()
    finally:
        handle.remove()
    return value.detach()


def trained(
    editor: Editor, facts: Sequence[Fact], start: Tensor, budget: int | None = None, **settings: object
) -> Tensor:
    hparams = GraceHyperParams.from_dict({"layer": LAYER, "n_iter": 8, "edit_lr": 0.3, **settings})
    place = projection(editor.adapter, LAYER, hparams.part)
    return train(editor.context().forward, place, facts, start, hparams, memory_budget=budget).values


WAYS = [(r, p) for r in ("replace_last", "replace_prompt", "replace_all") for p in ("mlp_out", "attn_out", "mlp_in")]


@pytest.mark.parametrize(
    ("family", "replacement", "part"),
    [
        *[("gpt2", *way) for way in WAYS],
        *[pytest.param("gpt_neox", *way, marks=pytest.mark.slow) for way in WAYS if way[1] == "mlp_out"],
        ("t5", "replace_last", "mlp_out"),
        ("t5", "replace_prompt", "mlp_in"),
    ],
)
def test_fast_training_is_plain_training(family: str, replacement: str, part: str) -> None:
    """All facts together, padded, with what lies below run once: float64, to 1e-8."""
    editor = editor_on(family, "grace", torch.float64, layer=LAYER)
    facts = facts_of(editor.context().tokens, FACTS)
    out = projection(editor.adapter, LAYER, part).out
    start = torch.rand(len(facts), out, generator=torch.Generator().manual_seed(3))
    wanted = torch.stack([plain(editor, f, s, replacement, part, 8, 0.3) for f, s in zip(facts, start, strict=True)])
    fast = trained(editor, facts, start, replacement=replacement, part=part)
    torch.testing.assert_close(fast, wanted, rtol=0, atol=1e-8)
    slow = trained(editor, facts, start, replacement=replacement, part=part, fast=False)
    torch.testing.assert_close(slow, wanted, rtol=0, atol=1e-8)
    one_by_one = trained(editor, facts, start, budget=1, replacement=replacement, part=part)
    torch.testing.assert_close(one_by_one, wanted, rtol=0, atol=1e-8)
    assert (wanted - start).abs().mean() > 0.1


def test_each_way_is_the_one_meant() -> None:
    """So that the comparison above compares something."""
    editor = editor_on("gpt2", "grace", layer=LAYER)
    facts = facts_of(editor.context().tokens, FACTS)

    def problem(part: str, **settings: object) -> Problem:
        hparams = GraceHyperParams.from_dict({"layer": LAYER, "part": part, **settings})
        return Problem(editor.context().forward, projection(editor.adapter, LAYER, part), facts, hparams)

    tail = problem("mlp_out").tail
    assert tail is not None and tail.fast
    assert problem("mlp_out", fast=False).tail is None and not problem("mlp_out", fast=False).resumed.fast
    assert problem("mlp_in").tail is None and problem("mlp_in").resumed.fast
    assert problem("mlp_out", replacement="replace_all").resumed.fast


def test_a_fast_pass_runs_the_blocks_above_only() -> None:
    editor = editor_on("gpt2", "grace", layer=LAYER)
    facts = facts_of(editor.context().tokens, FACTS)
    for settings in ({}, {"replacement": "replace_prompt"}):
        hparams = GraceHyperParams.from_dict({"layer": LAYER, **settings})
        place = projection(editor.adapter, LAYER, "mlp_out")
        problem = Problem(editor.context().forward, place, facts, hparams)
        calls = [0] * editor.adapter.num_layers
        handles = []
        for index in range(len(calls)):

            def count(*_: object, index: int = index, calls: list[int] = calls) -> None:
                calls[index] += 1

            handles.append(editor.adapter.block(index).register_forward_pre_hook(count))
        problem.losses(torch.zeros(len(facts), place.out))
        for handle in handles:
            handle.remove()
        assert calls[0] == 0 and calls[2] == 1


def test_a_loss_that_is_not_finite_stops_the_edit() -> None:
    editor = editor_on("gpt2", "grace", layer=LAYER)
    facts = facts_of(editor.context().tokens, FACTS)
    start = torch.full((3, projection(editor.adapter, LAYER, "mlp_out").out), float("inf"))
    with pytest.raises(MethodError, match="lower edit_lr"):
        trained(editor, facts, start)
