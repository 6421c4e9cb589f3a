"""An update that is larger than its weight is told, with its size and what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ft_tools import FRANCE, editor_on

from kedit_core import Editor
from kedit_core.editing import EditWarning
from kedit_core.patches import DenseDelta, LowRankDelta
from kedit_core.testing.tiny import tiny
from kedit_methods_finetune.guards import warn_large

METHODS = ("ft_l", "ft_m", "ft_bf", "lora", "adalora")
WEIGHT = "transformer.h.1.mlp.c_proj.weight"


def editor_of(method: str, **hparams: Any) -> Editor:
    if method.startswith("ft"):
        settings = {"stop_loss": 0.0, "num_steps": 6, "norm_constraint": None, **hparams}
        return editor_on("gpt2", method, torch.float32, **settings)
    model, tokenizer = tiny("gpt2", dtype=torch.float32)
    return Editor(model, tokenizer, method, {"num_steps": 6, "dropout": 0.0, **hparams})


def large(warnings: Any) -> list[EditWarning]:
    return [warning for warning in warnings if warning.code == "large_update"]


@pytest.mark.parametrize("method", METHODS)
def test_an_update_larger_than_its_weight_is_told(method: str) -> None:
    editor = editor_of(method, lr=0.5)
    weights = {name: weight.detach().clone() for name, weight in editor.model.named_parameters() if weight.dim() == 2}
    result = editor.edit(FRANCE, evaluate=False)
    moved = {
        operation.place: float(operation.delta(tuple(weight.T.shape), torch.float32).norm() / weight.norm())  # type: ignore[union-attr]
        for operation in result.patch.operations
        if (weight := weights.get(operation.place)) is not None  # type: ignore[union-attr]
    }
    assert len(moved) == (1 if method.startswith("ft") else 3)
    (told,) = large(result.warnings)
    assert told.number == pytest.approx(max(moved.values()), rel=1e-4)
    assert told.number is not None and told.number > 1
    place = max(moved, key=moved.__getitem__)
    assert f"the update of {place} is {told.number:.2g} times the size of its weight" in told.message
    assert "lower lr" in told.remedy
    editor.restore()


@pytest.mark.parametrize("method", METHODS)
def test_a_small_update_is_not_told(method: str) -> None:
    assert large(editor_of(method, lr=1e-5).edit(FRANCE, evaluate=False).warnings) == []


def test_a_bound_is_a_remedy() -> None:
    assert large(editor_of("ft_l", lr=0.5, norm_constraint=0.01).edit(FRANCE, evaluate=False).warnings) == []


def told(editor: Editor, *deltas: DenseDelta | LowRankDelta) -> list[EditWarning]:
    context = editor.context()
    warn_large(context, deltas, "lower lr")
    return large(context.warnings)


def test_what_is_compared() -> None:
    """Norms of the matrices, against the weight as it is now; no vectors, and nothing without a size."""
    editor = editor_of("ft_m")
    weight = editor.adapter.mlp_out(1).weight
    norm = weight.detach().norm()
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(weight.shape[1], 3, generator=generator)
    right = torch.randn(3, weight.shape[0], generator=generator)
    scale = float(norm / (left @ right).norm())
    assert told(editor, LowRankDelta(WEIGHT, 0.999 * scale * left, right)) == []
    (found,) = told(editor, LowRankDelta(WEIGHT, 1.001 * scale * left, right))
    assert found.number == pytest.approx(1.001, abs=1e-5)
    (found,) = told(editor, DenseDelta(WEIGHT, 2 * weight.detach().T))
    assert found.number == pytest.approx(2, abs=1e-5)
    bias = "transformer.h.1.mlp.c_proj.bias"
    assert told(editor, DenseDelta(bias, torch.full((weight.shape[1],), 1e3))) == []
    twice = DenseDelta(WEIGHT, 2 * weight.detach().T)
    with torch.no_grad():
        weight.zero_()
    assert told(editor, twice) == []


@pytest.mark.parametrize("made", ["int8", "meta"])
def test_weights_that_have_no_norm_are_passed_over(made: str) -> None:
    editor = editor_of("ft_m")
    projection = editor.adapter.mlp_out(1)
    values = projection.weight.detach()
    delta = DenseDelta(WEIGHT, 1e3 * values.T)
    assert len(told(editor, delta)) == 1
    other = values.to(torch.int8) if made == "int8" else values.to("meta")
    projection._parameters["weight"] = torch.nn.Parameter(other, requires_grad=False)
    assert told(editor, delta) == []
