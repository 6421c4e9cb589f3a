"""Acceptance checks 1-7 and 11 of ROME: what an update does to the weight, and to nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from locate_tools import MIRA, PARIS, TEMPLATES, PlainRome, a_statistic, delta_of, editor_on, spanned
from torch import Tensor

from kedit_core import Editor
from kedit_core.errors import MethodError
from kedit_core.patches import LowRankDelta, PatchStack
from kedit_methods_locate.rows import rewrite
from kedit_methods_locate.sizes import relative_weight_norm
from kedit_methods_locate.stats import Statistic, save_statistics
from kedit_methods_locate.update import direction, rank_one


def down(editor: Editor, layer: int = 1) -> tuple[Tensor, Tensor]:
    """Weight in [out, in] and bias of the edited layer."""
    bias = getattr(editor.adapter.mlp_out(layer), "bias", None)
    weight = editor.adapter.down_weight(layer).detach().clone()
    return weight, torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias.detach().clone()


def wanted(editor: Editor, request: Any = PARIS, **settings: Any) -> dict[str, Any]:
    return PlainRome(editor, 1).edit(request, steps=6, lr=0.1, clamp=None, **settings)


def edited(family: str, folder: Path, method: str = "rome", **settings: Any) -> tuple[Editor, Any]:
    editor = editor_on(family, folder, method, v_lr=0.1, v_num_grad_steps=6, clamp_norm_factor=None, **settings)
    return editor, editor.compute(PARIS)


# ------------------------------------------------------------------ 1
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_the_edited_layer_gives_the_value(family: str, tmp_path: Path) -> None:
    """ROME: W'k + b = v* for the bare key; R-ROME: for the averaged key."""
    for method in ("rome", "r_rome"):
        editor, patch = edited(family, tmp_path, method)
        plain = wanted(editor)
        weight, bias = down(editor)
        key = plain["keys"][0] if method == "rome" else plain["keys"].mean(0)
        value = (weight + delta_of(patch)) @ key + bias
        torch.testing.assert_close(value, plain["v0"] + plain["delta"], rtol=1e-6, atol=1e-8)


def test_the_edited_layer_gives_the_value_in_float32(tmp_path: Path) -> None:
    editor, patch = edited("llama", tmp_path, dtype=torch.float32)
    tools, seen = editor.forward, []
    row = rewrite(editor.tokens, spanned(PARIS), TEMPLATES).rows[0]
    at = row.index
    hook = editor.adapter.mlp_out(1).register_forward_hook(lambda m, a, out: seen.append((a[0][0, at], out[0, at])))
    with torch.no_grad(), editor.applied(patch):
        editor.model(torch.tensor([row.ids]))
    with torch.no_grad():
        editor.model(torch.tensor([row.ids]))
    hook.remove()
    (key, after), (same_key, before) = seen
    assert torch.equal(key, same_key)
    assert tools.fast
    record = patch.state.config["edits"][0]
    assert float((after - before).norm() / before.norm()) == pytest.approx(record["relative_norm"]["mlp"], rel=1e-4)


# ------------------------------------------------------------------ 2, 3, 7
def test_rank_one_with_the_row_space_of_u(tmp_path: Path) -> None:
    editor, patch = edited("gpt2", tmp_path)
    delta, u = delta_of(patch), wanted(editor)["u"]
    _, values, right = torch.linalg.svd(delta)
    assert int((values > 1e-6 * values[0]).sum()) == 1
    assert abs(float(right[0] @ u)) == pytest.approx(1, abs=1e-10)


def test_keys_orthogonal_to_the_written_one_are_untouched(tmp_path: Path) -> None:
    """x with x^T C^-1 k = 0 gives Delta x = 0."""
    editor, patch = edited("gpt2", tmp_path)
    delta, averaged = delta_of(patch), wanted(editor)["keys"].mean(0)
    along = torch.linalg.solve(a_statistic(1, len(averaged)).matrix, averaged)
    x = torch.randn(len(averaged), 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x - torch.outer(along, along @ x) / (along @ along)
    assert float((delta @ x).norm()) <= 1e-6 * float(delta.norm() * x.norm())


def test_scaling_the_statistic_changes_nothing(tmp_path: Path) -> None:
    editor, patch = edited("gpt2", tmp_path)
    other = a_statistic(1, editor.adapter.mlp_size(1))
    path = tmp_path / "scaled.safetensors"
    save_statistics(path, [Statistic(1, other.sum * 1024, other.count, other.record)])
    editor.options["stats"] = path
    again = editor.compute(PARIS)
    torch.testing.assert_close(delta_of(again), delta_of(patch), rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------ 4
@given(seed=st.integers(0, 10_000), width=st.integers(2, 24), out=st.integers(1, 6))
def test_no_other_update_with_the_same_effect_costs_less(seed: int, width: int, out: int) -> None:
    """Among updates with the same Delta k, R-ROME's has the least tr(Delta C Delta^T)."""
    generator = torch.Generator().manual_seed(seed)
    statistic = a_statistic(0, width, seed)
    key = torch.randn(width, generator=generator, dtype=torch.float64)
    residual = torch.randn(out, generator=generator, dtype=torch.float64)
    update = rank_one(residual, key, direction(key, statistic.factorised().solve))
    delta = torch.outer(update.left, update.right)
    torch.testing.assert_close(delta @ key, residual)

    def cost(matrix: Tensor) -> float:
        return float(torch.trace(matrix @ statistic.matrix @ matrix.T))

    for _ in range(5):
        other = torch.randn(out, width, generator=generator, dtype=torch.float64)
        other = other - torch.outer(other @ key, key) / (key @ key)
        assert cost(delta + other) >= cost(delta) * (1 - 1e-9)


# ------------------------------------------------------------------ 5
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_patched_weight_and_hook_give_the_same_logits(family: str, tmp_path: Path) -> None:
    """W' and delta at the subject are the same on the bare prompt up to what other positions' keys have of u."""
    editor, patch = edited(family, tmp_path, mom2_adjustment=False)
    plain = PlainRome(editor, 1)
    ids, at = plain.row(PARIS.prompt, "The capital of France")
    update = delta_of(patch)
    seen: list[Tensor] = []
    layer = editor.adapter.mlp_out(1)
    hook = layer.register_forward_pre_hook(lambda m, args: seen.append(args[0].reshape(len(ids), -1)))
    with torch.no_grad():
        editor.model(torch.tensor([ids]))
        hook.remove()
        moved = seen[0] @ update.T  # what W' adds at each position
        keep = torch.zeros_like(moved)
        keep[at] = moved[at]
        with editor.applied(patch):
            # take the other positions' share away again, so that only the subject's is left
            undo = editor.adapter.mlp_out(1).register_forward_hook(
                lambda m, args, out: out - (moved - keep).reshape(out.shape)
            )
            patched = editor.model(torch.tensor([ids])).logits[0]
            undo.remove()
        hooked = plain.forward(ids, at, moved[at])[0]
    torch.testing.assert_close(patched, hooked, rtol=1e-3, atol=1e-6)


# ------------------------------------------------------------------ 6, 11
def test_only_the_weight_changes_and_comes_back(tmp_path: Path) -> None:
    editor, patch = edited("gpt2", tmp_path, dtype=torch.float32)
    before = {name: p.detach().clone() for name, p in editor.model.named_parameters()}
    with editor.applied(patch):
        changed = [name for name, p in editor.model.named_parameters() if not torch.equal(p, before[name])]
        assert changed == ["transformer.h.1.mlp.c_proj.weight"]
        subtracted = editor.adapter.down_weight(1).detach() - delta_of(patch)
    weight = before["transformer.h.1.mlp.c_proj.weight"].t()
    assert float((subtracted - weight).norm() / weight.norm()) < 1e-6
    for name, parameter in editor.model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_one_step_writes_nothing(tmp_path: Path) -> None:
    """8: N = 1 gives Delta = 0 for ROME."""
    editor = editor_on("gpt2", tmp_path, v_num_grad_steps=1)
    assert not bool(delta_of(editor.compute(PARIS)).any())


def test_factors_are_float32_for_half_precision(tmp_path: Path) -> None:
    _, patch = edited("llama", tmp_path, dtype=torch.bfloat16)
    (op,) = patch.operations
    assert isinstance(op, LowRankDelta)
    assert op.left.dtype == op.right.dtype == torch.float32
    assert list(op.left.shape) == [32, 1]
    assert list(op.right.shape) == [1, 80]


# ------------------------------------------------------------------ denominators
def test_a_vanishing_denominator_is_refused() -> None:
    key = torch.tensor([1.0, 0.0], dtype=torch.float64)
    with pytest.raises(MethodError, match="denominator"):
        rank_one(torch.ones(3), key, torch.tensor([0.0, 1.0], dtype=torch.float64))


def test_a_zero_key_has_no_direction() -> None:
    with pytest.raises(MethodError, match="zero or not finite"):
        direction(torch.zeros(4), None)


def test_identity_statistic_writes_along_the_key() -> None:
    key = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(direction(key, None), torch.tensor([0.6, 0.8], dtype=torch.float64))


def test_several_requests_are_written_one_after_another(tmp_path: Path) -> None:
    """The second is computed on the weights that the first has left, with the statistic and templates of the base."""
    editor = editor_on("gpt2", tmp_path, v_lr=0.1, v_num_grad_steps=4, clamp_norm_factor=None)
    result = editor.edit([PARIS, MIRA], evaluate=False)
    first, second = result.patches
    editor.restore()
    alone = editor.compute(MIRA)
    assert torch.equal(second.operations[0].right, alone.operations[0].right)  # keys stand before the edited weight
    assert not torch.allclose(second.operations[0].left, alone.operations[0].left)
    context = editor.context()
    both = editor.host.compute_patch(context, [spanned(PARIS), spanned(MIRA)], editor.settings.hparams)  # type: ignore[union-attr]
    torch.testing.assert_close(delta_of(both), delta_of(first) + delta_of(second), rtol=1e-9, atol=1e-12)
    assert [op.type for op in both.operations] == ["low_rank_delta", "low_rank_delta"]
    assert both.state.config["context_templates"] == list(TEMPLATES)
    assert not editor.stack.patches


# ------------------------------------------------------------------ size
def hardly_used(unit: int) -> Statistic:
    """A statistic of text that makes one unit of layer 1 active ten thousand times less than the others."""
    total = a_statistic(1, 80).sum.clone()
    total[unit] *= 1e-4
    total[:, unit] *= 1e-4
    return Statistic(1, total, 1600, {})


@pytest.mark.parametrize("method", ["rome", "r_rome"])
def test_an_update_along_what_text_hardly_uses_is_told(method: str, tmp_path: Path) -> None:
    """Nothing shows on ordinary text, so only the size against the weight can tell; the remedy that is named helps."""
    sizes = []
    for ridge in (0.0, 1e-2):
        editor = editor_on("gpt2", tmp_path, method, mom2_ridge=ridge, v_lr=0.1, v_num_grad_steps=6)
        path = tmp_path / f"{ridge}.safetensors"
        save_statistics(path, [hardly_used(7)])
        editor.options["stats"] = path
        result = editor.edit(PARIS, evaluate=False)
        weight = editor.stack.base(editor.adapter.mlp_out_weight(1)).norm()
        (record,) = result.patch.state.config["edits"]
        assert record["relative_weight_norm"] == pytest.approx(float(delta_of(result.patch).norm() / weight), rel=1e-9)
        told = [warning for warning in result.warnings if warning.code == "large_update"]
        assert [warning.number for warning in told] == [record["relative_weight_norm"]] * (ridge == 0)
        assert all("mom2_ridge" in warning.remedy and PARIS.prompt in warning.message for warning in told)
        sizes.append(record["relative_weight_norm"])
    assert sizes[0] > 1 > sizes[1]


def test_a_large_update_is_told_without_a_statistic(tmp_path: Path) -> None:
    for rate, large in ((0.1, False), (500.0, True)):
        editor = editor_on(
            "gpt2", tmp_path, mom2_adjustment=False, v_lr=rate, v_num_grad_steps=6, clamp_norm_factor=None
        )
        result = editor.edit(PARIS, evaluate=False)
        told = {warning.code: warning for warning in result.warnings}
        assert ("large_update" in told) is large
        (record,) = result.patch.state.config["edits"]
        assert (record["relative_weight_norm"] > 1) is large
    assert told["large_update"].number == record["relative_weight_norm"]
    assert "mom2_adjustment" in told["large_update"].remedy and "mom2_ridge" not in told["large_update"].remedy


def test_packed_weights_have_no_size() -> None:
    """What is stored as packed integers says nothing of the weight; a weight of zeros makes any update huge."""
    model = torch.nn.Module()
    for name, weight in (("zero", torch.zeros(2, 2)), ("ones", torch.ones(2, 2).bfloat16())):
        model.add_module(name, torch.nn.Linear(2, 2, bias=False))
        model.get_submodule(name).weight = torch.nn.Parameter(weight)
    model.packed = torch.nn.Linear(2, 2, bias=False)
    model.packed.weight = torch.nn.Parameter(torch.ones(2, 1, dtype=torch.uint8), requires_grad=False)
    context: Any = SimpleNamespace(stack=PatchStack.of(model))
    assert relative_weight_norm(context, "packed.weight", 3.0) is None
    assert relative_weight_norm(context, "ones.weight", 3.0) == 1.5
    found = relative_weight_norm(context, "zero.weight", 3.0)
    assert found is not None and 1e30 < found < float("inf")
