"""PMET through the Editor: both searches and spreads against plain ones, one or two projections, square weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from locate_tools import MIRA, OREN, PARIS, TEMPLATES
from plain_spread import PlainSpread, both, deltas_of, ridge
from spread_editors import apart, made_up, matrices_of, relative, spread_editor
from spread_tools import PMET_PARTS, PlainSearch
from torch import nn

from kedit_core import Editor
from kedit_core.errors import HyperParamsError
from kedit_core.testing.tiny import tiny
from kedit_methods_locate.hparams import PmetHyperParams
from kedit_methods_locate.spreading import share_of

pytestmark = pytest.mark.slow

FACTS = (PARIS, MIRA, OREN)
LAMBDA = 40.0
BOTH = (("mlp_out", "attn_out"), ("attn_out", "mlp_out"), ("attn_out",))


def place(editor: Editor, layer: int, projection: str) -> str:
    view = editor.adapter
    return view.mlp_out_weight(layer) if projection == "mlp_out" else view.attn_out_weight(layer)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_a_default_run_leaves_the_attention_alone(family: str, tmp_path: Path) -> None:
    """4: bit for bit, with the patch on the model; the edited layers' down-projections are all that changes."""
    editor = spread_editor(family, tmp_path, "pmet", dtype=torch.float32)
    before = {name: value.clone() for name, value in editor.model.state_dict().items()}
    attention = [editor.adapter.attn_out_weight(layer) for layer in range(editor.adapter.num_layers)]
    assert set(attention) <= before.keys()
    editor.edit(FACTS, evaluate=False)
    after = editor.model.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert changed == [place(editor, layer, "mlp_out") for layer in (0, 1)]


def square_root(left: int) -> float:
    return float(left**-0.5)


@pytest.mark.parametrize("layers", [(0, 1), (0, 2)], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "t5"])
def test_deltas_are_the_plain_loops(family: str, layers: tuple[int, ...], tmp_path: Path) -> None:
    """The MLP's projection moves its own output at the last edited layer, spread by square roots."""
    editor = spread_editor(family, tmp_path, "pmet", layers=layers)
    patch = editor.compute(FACTS)
    plain = PlainSpread(editor, FACTS, TEMPLATES)
    wanted = plain.spread(
        layers,
        patch.state.tensors["targets.mlp_out"],
        ridge(matrices_of(editor), LAMBDA),
        module=plain.view.mlp_out(layers[-1]),
        share=square_root,
    )
    found = deltas_of(patch)
    assert list(found) == [place(editor, layer, "mlp_out") for layer in layers], "the attention's weights stay"
    for layer in layers:
        assert relative(found[place(editor, layer, "mlp_out")], wanted[layer]) < 1e-8
    assert [turn["share"] for turn in patch.state.config["turns"]] == [2**-0.5, 1.0]


def test_linear_spread_is_the_memit_algebra(tmp_path: Path) -> None:
    editor = spread_editor("gpt2", tmp_path, "pmet", spread="linear")
    patch = editor.compute(FACTS)
    plain = PlainSpread(editor, FACTS, TEMPLATES)
    update = ridge(matrices_of(editor), LAMBDA)
    wanted = plain.spread((0, 1), patch.state.tensors["targets.mlp_out"], update, module=plain.view.mlp_out(1))
    for layer in (0, 1):
        assert relative(deltas_of(patch)[place(editor, layer, "mlp_out")], wanted[layer]) < 1e-8


@pytest.mark.parametrize("projections", BOTH, ids="+".join)
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "t5"])
def test_both_projections_are_the_plain_loops(family: str, projections: tuple[str, ...], tmp_path: Path) -> None:
    """In the order given; gpt_neox runs attention and MLP on the same input, so both keys are read before a write."""
    editor = spread_editor(family, tmp_path, "pmet", projections=list(projections))
    patch = editor.compute(FACTS)
    targets = {each: patch.state.tensors[f"targets.{each}"] for each in projections}
    matrices = {(i, each): made_up(editor.adapter, i, each).matrix for i in (0, 1) for each in projections}
    wanted = both(PlainSpread(editor, FACTS, TEMPLATES), (0, 1), targets, ridge(matrices, LAMBDA))
    found = deltas_of(patch)
    assert list(found) == [place(editor, layer, each) for layer, each in wanted]
    for (layer, each), delta in wanted.items():
        assert relative(found[place(editor, layer, each)], delta) < 1e-8
    assert {f"keys.{i}.{each}" for i in (0, 1) for each in projections} == {
        name for name in patch.state.tensors if name.startswith("keys.")
    }


def test_the_order_of_the_projections_matters_where_one_feeds_the_other(tmp_path: Path) -> None:
    """The check on the tests above: read before or after the other's write is told apart."""
    for family, same in (("gpt2", False), ("gpt_neox", True)):
        one, other = (
            spread_editor(family, tmp_path, "pmet", projections=list(order)).compute(FACTS) for order in BOTH[:2]
        )
        assert (apart(one, other) < 1e-8) is same


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_targets_are_the_plain_joint_searchs_one_by_one(family: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {"v_num_grad_steps": 8, "kl_stop": 0.2, "nll_loss_factor": 0.7, "clamp_norm_factor": 2.0}
    editor = spread_editor(family, tmp_path, "pmet", **more)
    patch = editor.compute(FACTS)
    plain = PlainSearch(editor.model, editor.tokens, editor.adapter, 1, PMET_PARTS)  # type: ignore[arg-type]
    for number, fact in enumerate(FACTS):
        wanted = plain.find(fact, steps=8, lr=0.3, clamp=2.0, kl_factor=1.0, factor=0.7, kl_stop=0.2)
        alone = editor.compute(fact)
        for part in PMET_PARTS:
            found = patch.state.tensors[f"targets.{part}"][number]
            assert relative(found, wanted.targets[part]) < 1e-8
            assert relative(alone.state.tensors[f"targets.{part}"][0], found) < 1e-8
        assert set(patch.state.config["edits"][number]["relative_norm"]) == set(PMET_PARTS)
        assert patch.state.config["edits"][number]["loss"] == pytest.approx(wanted.losses[-1], rel=1e-8)


@pytest.mark.parametrize(("turns", "kind"), [(6, "sqrt"), (6, "linear"), (1, "sqrt")])
def test_shares(turns: int, kind: Any) -> None:
    power = 0.5 if kind == "sqrt" else 1.0
    found = [share_of(turn, turns, kind) for turn in range(turns)]
    assert found == pytest.approx([1 / (turns - turn) ** power for turn in range(turns)])
    assert found[-1] == 1
    if (turns, kind) == (6, "sqrt"):
        assert sum(found) == pytest.approx(3.64, abs=0.01)


@pytest.mark.parametrize("weight", [1e-6, 30.0])
def test_the_last_layer_gives_the_targets_but_for_what_the_ridge_holds(weight: float, tmp_path: Path) -> None:
    """With one context the projection's output at the last layer misses them by ``E lambda (lambda I + G)^-1``, E being
    what was left to that layer."""
    editor = spread_editor("gpt2", tmp_path, "pmet", context_templates=["{}"], mom2_update_weight=weight)
    patch = editor.compute(FACTS)
    plain = PlainSpread(editor, FACTS, ["{}"])
    module, targets = plain.view.mlp_out(1), patch.state.tensors["targets.mlp_out"].T
    first = deltas_of(patch)[place(editor, 0, "mlp_out")]
    with torch.no_grad():
        plain.view.down_weight(0).add_(first)
    keys, gap = plain.keys(1), targets - plain.states(module)
    gains = keys.T @ torch.linalg.inv(matrices_of(editor)[1]) @ keys
    left = gap @ (weight * torch.linalg.inv(weight * torch.eye(3, dtype=torch.float64) + gains))
    with torch.no_grad():
        plain.view.down_weight(1).add_(deltas_of(patch)[place(editor, 1, "mlp_out")])
    missed = targets - plain.states(module)
    assert relative(missed, left) < 1e-6 or weight < 1
    if weight < 1:
        assert float((missed.norm(dim=0) / targets.norm(dim=0)).max()) < 1e-3
    assert patch.state.config["gap_left"] == pytest.approx(float(missed.norm(dim=0).mean()), rel=1e-4)


@pytest.mark.parametrize("method", ["memit", "pmet"])
def test_the_tokenizers_padding_side_changes_nothing(method: str, tmp_path: Path) -> None:
    """Rows of unequal length, batched; the same bytes whichever side the tokenizer would pad on."""
    made = []
    for side in ("right", "left"):
        editor = spread_editor("gpt2", tmp_path, method)
        editor.tokenizer.padding_side = side
        made.append(editor.compute(FACTS).to_bytes())
    assert made[0] == made[1]


def test_square_weights_are_oriented_by_their_modules_class(tmp_path: Path) -> None:
    """GPT-2's attention projection is a square Conv1D; as a Linear with the transposed weight the model is the same,
    and so is its edit."""
    conv = spread_editor("gpt2", tmp_path, "pmet", projections=["attn_out"])
    model, _ = tiny("gpt2", dtype=torch.float64)
    for block in model.transformer.h:
        old = block.attn.c_proj
        new = nn.Linear(32, 32, dtype=torch.float64)
        with torch.no_grad():
            new.weight.copy_(old.weight.T)
            new.bias.copy_(old.bias)
        block.attn.c_proj = new
    linear = spread_editor("gpt2", tmp_path, "pmet", model=model.eval(), projections=["attn_out"])
    patches = [editor.compute(FACTS) for editor in (conv, linear)]
    assert [patch.base.tensors[place(conv, 0, "attn_out")].layout for patch in patches] == ["in_out", "out_in"]
    assert apart(patches[1], patches[0]) < 1e-8
    assert all(delta.shape == (32, 32) for delta in deltas_of(patches[0]).values())
    text = torch.tensor([conv.tokenizer("The capital of France is")["input_ids"]])
    logits = []
    for editor, patch in zip((conv, linear), patches, strict=True):
        before = editor.model(text).logits.detach()
        with editor.applied(patch):
            logits.append(editor.model(text).logits.detach())
        assert not torch.allclose(logits[-1], before)
    assert torch.allclose(logits[0], logits[1], atol=1e-8)


@pytest.mark.parametrize(
    "wrong", [{"projections": []}, {"projections": ["mlp_out", "mlp_out"]}, {"projections": ["block"]},
              {"nll_loss_factor": 0}, {"kl_stop": -1}, {"spread": "cubic"}],
    ids=str,
)  # fmt: skip
def test_what_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(HyperParamsError):
        PmetHyperParams.from_dict({"layers": [1], **wrong})
