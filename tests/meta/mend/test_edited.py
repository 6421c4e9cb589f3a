"""A model under edits that are not written: against the weights written, and rows that are under edits of their own."""

from __future__ import annotations

import pytest
import torch
from meta_tools import a_context, pairs
from torch import Tensor

from kedit_core.editing import EditContext
from kedit_core.testing.snapshot import Snapshot
from kedit_methods_meta.edited import Change, LowRank, edited, edited_logits
from kedit_methods_meta.places import Place, places_of
from kedit_methods_meta.questions import questions

TEXTS = (("The capital of France is", "Rome"), ("Alice works in the city of", "Paris and Oslo"))


def random(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low_rank(places: tuple[Place, ...], rows: int = 4) -> dict[str, LowRank]:
    """Half of the rows are of edit 0, half of edit 1."""
    edit = torch.arange(rows) // 2
    return {
        place.name: LowRank(random(rows, place.width, seed=i), random(rows, place.out, seed=50 + i), edit)
        for i, place in enumerate(places)
    }


def written(context: EditContext, changes: dict[str, Tensor], batch: object) -> Tensor:
    """Logits of the model with the changes in its weights."""
    parameters = dict(context.model.named_parameters())
    with torch.no_grad():
        for name, change in changes.items():
            parameters[name] += change.T if context.adapter.layout(name) == "in_out" else change
        found = context.forward.run(batch.batch, logits_at=batch.cells).logits  # type: ignore[attr-defined]
        for name, change in changes.items():
            parameters[name] -= change.T if context.adapter.layout(name) == "in_out" else change
    assert found is not None
    return found


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "opt", "t5"])
def test_6_it_is_the_written_model(family: str) -> None:
    """Acceptance check 6, for factors and for a change formed whole."""
    context = a_context(family)
    places = places_of(context.adapter, ("mlp_in", "mlp_out"), (-2, -1))
    asked = questions(context.forward, pairs(context, *TEXTS))
    edits = low_rank(places)
    whole = {name: each.outputs.T @ each.inputs for name, each in edits.items()}
    base = context.forward.run(asked.batch, logits_at=asked.cells).logits
    wanted = written(context, whole, asked)
    assert not torch.allclose(wanted, base, atol=1e-3)
    for changes in (edits, whole):
        torch.testing.assert_close(edited_logits(context.forward, asked, places, changes), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "opt", "t5"])
def test_rows_are_under_their_own_edits(family: str) -> None:
    context = a_context(family)
    places = places_of(context.adapter, ("mlp_in", "mlp_out"), (-2, -1))
    edits = low_rank(places)
    asked = questions(context.forward, pairs(context, *TEXTS, TEXTS[0]))
    group = torch.tensor([1, 0, 0])
    together = edited_logits(context.forward, asked, places, edits, group)
    for row, pair in enumerate(pairs(context, *TEXTS, TEXTS[0])):
        mine = {
            name: LowRank(each.inputs[each.edit == group[row]], each.outputs[each.edit == group[row]], each.edit[:2])
            for name, each in edits.items()
        }
        alone = edited_logits(context.forward, questions(context.forward, [pair]), places, mine)
        torch.testing.assert_close(together[asked.row == row], alone, rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_the_written_model() -> None:
    context = a_context("gpt2")
    places = places_of(context.adapter, ("mlp_in", "mlp_out"), (-2, -1))
    asked = questions(context.forward, pairs(context, *TEXTS))
    edits = low_rank(places)
    for each in edits.values():
        each.inputs.requires_grad_(True)
        each.outputs.requires_grad_(True)
    leaves = [each.inputs for each in edits.values()] + [each.outputs for each in edits.values()]
    loss = edited_logits(context.forward, asked, places, edits).square().mean()
    functional = torch.autograd.grad(loss, leaves)
    parameters = {name: value.detach() for name, value in context.model.named_parameters()}
    for name, each in edits.items():
        change = each.outputs.T @ each.inputs
        parameters[name] = parameters[name] + (change.T if context.adapter.layout(name) == "in_out" else change)
    call = {"input_ids": asked.batch.input_ids, "attention_mask": asked.batch.attention_mask}
    logits = torch.func.functional_call(context.model, parameters, (), call).logits
    plain = torch.autograd.grad(logits[asked.cells[:, 0], asked.cells[:, 1]].square().mean(), leaves)
    for one, other in zip(functional, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


def test_nothing_below_the_lowest_edit_is_in_the_graph() -> None:
    context = a_context("gpt2")
    places = places_of(context.adapter, ("mlp_out",), (-1,))
    asked = questions(context.forward, pairs(context, TEXTS[0]))
    edits = low_rank(places)
    edits[places[0].name].inputs.requires_grad_(True)
    graphs: list[bool] = []
    for layer in range(3):
        context.adapter.block(layer).register_forward_hook(
            lambda module, args, output: graphs.append(
                (output if isinstance(output, Tensor) else output[0]).requires_grad
            )
        )
    assert edited_logits(context.forward, asked, places, edits).requires_grad
    assert graphs == [False, False, True]


def test_an_empty_edit_changes_no_bit_and_hooks_are_gone_after_an_error() -> None:
    context = a_context("gpt2", torch.float32)
    places = places_of(context.adapter, ("mlp_out",), (-1,))
    asked = questions(context.forward, pairs(context, TEXTS[0]))
    base = context.forward.run(asked.batch, logits_at=asked.cells).logits
    none: dict[str, Change] = {
        place.name: LowRank(torch.zeros(0, place.width), torch.zeros(0, place.out), torch.zeros(0)) for place in places
    }
    assert torch.equal(edited_logits(context.forward, asked, places, none), base)
    # as differentiable as any edit: a training may meet one whose answers are certain already
    alpha = torch.ones((), requires_grad=True)
    scaled = {name: LowRank(each.inputs, alpha * each.outputs, each.edit) for name, each in none.items()}
    logits = edited_logits(context.forward, asked, places, scaled, torch.zeros(1, dtype=torch.long))
    assert torch.autograd.grad(logits.sum(), [alpha])[0] == 0
    before = Snapshot(context.model)
    with pytest.raises(RuntimeError, match="stopped"), edited(context.forward, places, low_rank(places)):
        raise RuntimeError("stopped")
    assert not before.differences(context.model)


def test_a_patch_holds_the_smaller_form() -> None:
    for rows, kind in ((1, "low_rank_delta"), (2, "low_rank_delta"), (3, "dense_delta"), (9, "dense_delta")):
        change = LowRank(random(rows, 7), random(rows, 4, seed=1), torch.zeros(rows))
        operation = change.operation("a.weight")
        assert operation is not None
        assert operation.type == kind
        torch.testing.assert_close(
            operation.delta((4, 7), torch.float64), change.outputs.T @ change.inputs, rtol=1e-12, atol=1e-15
        )
    assert LowRank(random(0, 7), random(0, 4), torch.zeros(0)).operation("a.weight") is None
