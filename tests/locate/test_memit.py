"""MEMIT through the Editor: against a plain loop, and what its sheet says must hold of a whole edit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from locate_tools import MIRA, OREN, PARIS, TEMPLATES
from plain_spread import PlainSpread, deltas_of, ridge
from spread_editors import METHODS, apart, matrices_of, relative, spread_editor
from spread_tools import MEMIT_PARTS, PlainSearch

from kedit_core import EditPatch
from kedit_core.errors import MethodError
from kedit_core.testing.snapshot import Snapshot
from kedit_core.testing.tiny import FAMILIES, tiny
from kedit_methods_locate import spread_method

pytestmark = pytest.mark.slow

FACTS = (PARIS, MIRA, OREN)
LAMBDA = 40.0
# llama's norms are in float32 whatever the model's dtype, and gemma2's softmax overflows in float64
BOUND = {"llama": 1e-5, "gemma2": 1e-3}


def targets_of(patch: EditPatch) -> torch.Tensor:
    return patch.state.tensors["targets.block"]


@pytest.mark.parametrize("layers", [(0, 1), (0, 2), (1,)], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "t5", "llama", "gemma2"])
def test_deltas_are_the_plain_loops(family: str, layers: tuple[int, ...], tmp_path: Path) -> None:
    """Whole forwards of one row, explicit inverses, weights in place; with the targets that the patch holds."""
    editor = spread_editor(
        family, tmp_path, layers=layers, dtype=torch.float32 if family == "gemma2" else torch.float64
    )
    patch = editor.compute(FACTS)
    plain = PlainSpread(editor, FACTS, TEMPLATES)
    wanted = plain.spread(layers, targets_of(patch), ridge(matrices_of(editor), LAMBDA))
    found = deltas_of(patch)
    assert list(found) == [editor.adapter.mlp_out_weight(layer) for layer in layers]
    for layer in layers:
        assert relative(found[editor.adapter.mlp_out_weight(layer)], wanted[layer]) < BOUND.get(family, 1e-8)
    told = [turn["gap"] for turn in patch.state.config["turns"]]
    assert told == pytest.approx([float(gap.norm(dim=0).mean()) for gap in plain.gaps], rel=1e-4)


def test_more_facts_than_half_the_width_and_no_statistic(tmp_path: Path) -> None:
    """Solved by the whole matrix; and with the identity in place of the statistic."""
    from attrs import evolve

    names = ("France", "Spain", "Mira Taldon", "Rome", "Alice")
    facts = [evolve(PARIS, prompt=f"{a} {b} of {name} is", subject=name) for name in names
             for a in ("The", "A", "One") for b in ("capital", "river", "king")]  # fmt: skip
    editor = spread_editor("gpt2", tmp_path, mom2_adjustment=False, v_num_grad_steps=2)
    patch = editor.compute(facts)
    assert {each["form"] for each in patch.state.config["solves"]} == {"direct"}
    eye = dict.fromkeys(range(2), torch.eye(80, dtype=torch.float64))
    wanted = PlainSpread(editor, facts, TEMPLATES).spread((0, 1), targets_of(patch), ridge(eye, LAMBDA))
    for layer, delta in enumerate(deltas_of(patch).values()):
        assert relative(delta, wanted[layer]) < 1e-8


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_targets_are_the_plain_searchs_one_by_one(family: str, tmp_path: Path) -> None:
    """At the last edited layer's output, on the unedited weights, the likelihood read after ``v_loss_layer``."""
    editor = spread_editor(family, tmp_path, layers=[0], v_loss_layer=1, clamp_norm_factor=0.4)
    patch = editor.compute(FACTS)
    plain = PlainSearch(editor.model, editor.tokens, editor.adapter, 0, MEMIT_PARTS)  # type: ignore[arg-type]
    for number, fact in enumerate(FACTS):
        wanted = plain.find(fact, steps=5, lr=0.3, clamp=0.4, loss_layer=1)
        assert relative(targets_of(patch)[number], wanted.targets["block"]) < 1e-8
        record = patch.state.config["edits"][number]
        assert record["loss"] == pytest.approx(wanted.losses[-1], rel=1e-8)
        assert record["steps"] == len(wanted.losses) - 1
        assert record["relative_norm"]["block"] == pytest.approx(
            float(wanted.deltas["block"].norm() / wanted.values["block"].norm())
        )
        alone = editor.compute(fact)
        assert relative(targets_of(patch)[number], targets_of(alone)[0]) < 1e-8


@pytest.mark.parametrize("method", METHODS)
def test_order_of_the_facts_changes_nothing_and_rank_is_at_most_theirs(method: str, tmp_path: Path) -> None:
    editor = spread_editor("gpt2", tmp_path, method)
    patch, other = editor.compute(FACTS), editor.compute([OREN, PARIS, MIRA])
    assert apart(other, patch) < 1e-8
    for name, rows in patch.state.tensors.items():
        assert relative(other.state.tensors[name], rows[[2, 0, 1]]) < 1e-8
    for delta in deltas_of(patch).values():
        values = torch.linalg.svdvals(delta)
        assert float(values[2]) > 1e-8 * float(values[0]) > float(values[3]), "three facts, rank three"


def test_the_gap_falls_from_turn_to_turn(tmp_path: Path) -> None:
    model, _ = tiny("gpt2", dtype=torch.float64, n_layer=6)
    editor = spread_editor("gpt2", tmp_path, model=model, layers=(0, 1, 2), mom2_update_weight=1.0)
    config = editor.compute(FACTS).state.config
    gaps = [*(turn["gap"] for turn in config["turns"]), config["gap_left"]]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.5 * gaps[0]
    assert [turn["share"] for turn in config["turns"]] == [1 / 3, 1 / 2, 1.0]


@pytest.mark.parametrize("weight", [0.3, 300.0])
def test_one_layer_leaves_what_the_ridge_holds(weight: float, tmp_path: Path) -> None:
    """With one context the block's output moves by ``E (I - lambda (lambda I + G)^-1)``, ``G = K^T C^-1 K``."""
    one: dict[str, Any] = {"layers": [1], "context_templates": ["{}"], "mom2_update_weight": weight}
    editor = spread_editor("gpt2", tmp_path, **one)
    patch = editor.compute(FACTS)
    plain = PlainSpread(editor, FACTS, ["{}"])
    keys, before = plain.keys(1), plain.states(plain.view.block(1))
    gap = targets_of(patch).T - before
    gains = keys.T @ torch.linalg.inv(matrices_of(editor)[1]) @ keys
    left = gap @ (weight * torch.linalg.inv(weight * torch.eye(3, dtype=torch.float64) + gains))
    plain.write(patch)
    after = plain.states(plain.view.block(1))
    assert relative(targets_of(patch).T - after, left) < 1e-6
    assert patch.state.config["gap_left"] == pytest.approx(float(left.norm(dim=0).mean()), rel=1e-6)
    alone = editor.compute(PARIS).state.config
    gain = float(gains[0, 0])
    assert alone["gap_left"] / alone["turns"][0]["gap"] == pytest.approx(weight / (weight + gain), rel=1e-6)
    assert alone["solves"][0]["smallest_share"] == pytest.approx(gain / (weight + gain), rel=1e-6)


def test_only_the_edited_weights_change_and_come_back(tmp_path: Path) -> None:
    editor = spread_editor("gpt2", tmp_path, layers=(0, 2))
    before = Snapshot(editor.model)
    values = {name: value.detach().clone() for name, value in editor.model.named_parameters()}
    editor.edit(FACTS, evaluate=False)
    changed = [n for n, value in editor.model.named_parameters() if not torch.equal(value.detach(), values[n])]
    assert changed == [f"transformer.h.{layer}.mlp.c_proj.weight" for layer in (0, 2)]
    editor.restore()
    assert before.differences(editor.model) == []


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-8), (torch.float32, 1e-3)], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_the_fast_path_gives_what_the_plain_one_gives(
    family: str, dtype: torch.dtype, bound: float, tmp_path: Path
) -> None:
    """The whole edit, the search included; the readings alone are compared in the reader's own tests."""
    fast, slow = (spread_editor(family, tmp_path, dtype=dtype, fast=each).compute(FACTS) for each in (True, False))
    assert apart(fast, slow) < bound


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_edited_and_comes_back(family: str, tmp_path: Path) -> None:
    editor = spread_editor(family, tmp_path, dtype=torch.float32, v_num_grad_steps=3)
    before = Snapshot(editor.model)
    patch = editor.edit(FACTS, evaluate=False).patch
    assert all(bool(delta.any()) for delta in deltas_of(patch).values())
    config = patch.state.config
    assert config["gap_left"] < config["turns"][0]["gap"]
    assert before.differences(editor.model)
    editor.restore()
    assert before.differences(editor.model) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_models_are_edited_in_float32(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    editor = spread_editor("gpt2", tmp_path, method, dtype=dtype)
    before = Snapshot(editor.model)
    patch = editor.edit(FACTS[:2], evaluate=False).patch
    assert {tensor.dtype for tensor in patch.state.tensors.values()} == {torch.float32}
    assert {t.dtype for op in patch.operations for t in (op.left, op.right)} == {torch.float32}  # type: ignore[union-attr]
    target = next(iter(patch.state.tensors.values()))
    assert not torch.equal(target, target.to(dtype).float()), "targets are not rounded to the model's dtype"
    wide = spread_editor("gpt2", tmp_path, method, dtype=torch.float32).compute(FACTS[:2])
    assert apart(patch, wide) < 0.5, "the same edit up to the rounding of weights and activations"
    editor.restore()
    assert before.differences(editor.model) == []


def test_nothing_is_written_when_an_update_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = spread_editor("gpt2", tmp_path)
    before = Snapshot(editor.model)
    real, calls = spread_method.spread, []

    def broken(*args: Any, **kwargs: Any) -> Any:
        def solve(layer: int, projection: Any, keys: torch.Tensor) -> torch.Tensor:
            calls.append(layer)
            return args[4](layer, projection, keys) * (1.0 if layer == 0 else float("nan"))

        return real(*args[:4], solve, **kwargs)

    monkeypatch.setattr(spread_method, "spread", broken)
    with pytest.raises(MethodError, match=r"update of transformer\.h\.1\.mlp\.c_proj\.weight is not finite"):
        editor.edit(FACTS, evaluate=False)
    assert calls == [0, 1], "the first layer was on the model when the second failed"
    assert before.differences(editor.model) == []
    assert editor.stack.patches == ()
