"""AlphaEdit through the Editor: the published formula, the null space, and what earlier edits may count on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from locate_tools import MIRA, OREN, PARIS, TEMPLATES
from plain_spread import PlainSpread, deltas_of, nullspace
from spread_editors import apart, codes, made_up, matrices_of, relative, spread_editor
from torch import Tensor

from kedit_core import Editor
from kedit_core.errors import HyperParamsError, InputError, MethodError
from kedit_core.forward import Site
from kedit_core.testing.snapshot import Snapshot
from kedit_core.testing.tiny import tiny
from kedit_methods_locate.alphaedit import AlphaEdit
from kedit_methods_locate.hparams import AlphaEditHyperParams
from kedit_methods_locate.nullspace_solver import NullSpaceSolver
from kedit_methods_locate.rows import rewrite
from kedit_methods_locate.spreading import Goal, spread

pytestmark = pytest.mark.slow

FIRST = (PARIS, MIRA)
LATER = (OREN, evolve(PARIS, prompt="The king of Spain is", subject="Spain", target_new="Brink"))
TAU, L2 = 5.0, 0.5
PLACES = [f"transformer.h.{layer}.mlp.c_proj.weight" for layer in (0, 1)]


def inside(editor: Editor, layer: int) -> Tensor:
    values, vectors = torch.linalg.eigh(matrices_of(editor)[layer])
    return vectors[:, values < TAU]


def keys_of(editor: Editor, layer: int, documents: Sequence[str]) -> Tensor:
    """``[tokens, in]`` what the layer's down-projection reads over the documents, one at a time."""
    seen: list[Tensor] = []
    hook = editor.adapter.mlp_out(layer).register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    with torch.no_grad():
        for document in documents:
            editor.model(torch.tensor([editor.tokenizer(document)["input_ids"]]))
    hook.remove()
    return torch.cat(seen)


@pytest.mark.parametrize(("family", "weight"), [("gpt2", 0.0), ("gpt_neox", 0.0), ("t5", 0.0), ("gpt2", 3.0)])
def test_deltas_are_the_published_formulas(family: str, weight: float, tmp_path: Path) -> None:
    """A first batch, and a second one whose S is made of the first one's keys, read again from the edited weights.

    With a weight, the statistic counts inside the null space, too (ours).
    """
    editor = spread_editor(family, tmp_path, "alphaedit", mom2_update_weight=weight)
    matrices = matrices_of(editor)
    first = editor.edit(FIRST, evaluate=False).patch
    plain = PlainSpread(editor, FIRST, TEMPLATES)
    wanted = plain.spread((0, 1), first.state.tensors["targets.block"], nullspace(matrices, TAU, L2, None, weight))
    places = [editor.adapter.mlp_out_weight(layer) for layer in (0, 1)]
    for layer, place in enumerate(places):
        assert relative(deltas_of(first)[place], wanted[layer]) < 1e-8

    past = {layer: plain.keys(layer) for layer in (0, 1)}  # with both layers written
    for layer, keys in past.items():
        assert relative(first.state.tensors[f"keys.{layer}.mlp_out"].T, keys) < 1e-8
    second = editor.edit(LATER, evaluate=False).patch
    after = PlainSpread(editor, LATER, TEMPLATES)
    after.write(first)
    wanted = after.spread((0, 1), second.state.tensors["targets.block"], nullspace(matrices, TAU, L2, past, weight))
    for layer, place in enumerate(places):
        assert relative(deltas_of(second)[place], wanted[layer]) < 1e-8
    unprotected = PlainSpread(editor, LATER, TEMPLATES)
    unprotected.write(first)
    other = unprotected.spread(
        (0, 1), second.state.tensors["targets.block"], nullspace(matrices, TAU, L2, None, weight)
    )
    assert relative(other[0], wanted[0]) > 1e-3, "S matters here"


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"nullspace_rule": "energy", "nullspace_energy": 0.1},
        {"nullspace_rule": "rank", "nullspace_rank": 30},
        {"nullspace_rule": "rank", "nullspace_rank": 30, "mom2_update_weight": 3.0},
    ],
    ids=["absolute", "energy", "rank", "weighed"],
)
def test_updates_stay_in_the_null_space(rule: dict[str, Any], tmp_path: Path) -> None:
    """``Delta P = Delta``, ordinary text is moved by at most ``tau |Delta|^2``, and the patch tells of the space."""
    editor = spread_editor("gpt2", tmp_path, "alphaedit", **rule)
    patch = editor.compute(FIRST)
    for layer, told in enumerate(patch.state.config["null_spaces"]):
        delta, matrix = deltas_of(patch)[PLACES[layer]], matrices_of(editor)[layer]
        values, vectors = torch.linalg.eigh(matrix)
        protected = vectors[:, told["rank"] :]
        assert float((delta @ protected).norm()) < 1e-6 * float(delta.norm())
        assert float(torch.trace(delta @ matrix @ delta.T)) <= float(values[told["rank"] - 1] * delta.norm() ** 2)
        assert (told["layer"], told["width"], told["l2"]) == (layer, 80, L2)
        assert told["eigenvalue_below"] == pytest.approx(float(values[told["rank"] - 1]), rel=1e-9)
        assert told["eigenvalue_above"] == pytest.approx(float(values[told["rank"]]), rel=1e-9)
        assert len(told["sha256"]) == 64
    if not rule:
        assert [s["rank"] for s in patch.state.config["null_spaces"]] == [inside(editor, i).shape[1] for i in (0, 1)]
    else:
        assert patch.state.config["null_spaces"][0]["rule"] == rule["nullspace_rule"]


def test_the_patch_tells_how_far_text_moves(tmp_path: Path) -> None:
    """``tr(Delta C Delta^T)`` of each layer, and its bound."""
    editor = spread_editor("gpt2", tmp_path, "alphaedit")
    patch = editor.compute(FIRST)
    for layer, told in enumerate(patch.state.config["protection"]):
        delta, matrix = deltas_of(patch)[PLACES[layer]], matrices_of(editor)[layer]
        ceiling = patch.state.config["null_spaces"][layer]["eigenvalue_below"]
        assert told["layer"] == layer
        assert told["moved"] == pytest.approx(float(torch.trace(delta @ matrix @ delta.T)), rel=1e-8)
        assert told["bound"] == pytest.approx(ceiling * float(delta.norm()) ** 2, rel=1e-8)
        assert told["moved"] <= told["bound"]


def test_held_out_text_is_moved_no_more_than_the_bound_allows() -> None:
    """3, on a model that knows facts: mean |Delta k|^2 / |Delta|^2 over documents that are in no statistic.

    The same facts written along their bare keys move that text far more than the bound.
    """
    from kedit_factworld.corpus import PASSES, pass_documents
    from kedit_factworld.world import build_world

    documents = pass_documents(build_world(), PASSES)[:40]  # the first pass that the shipped statistic has not seen
    quick: dict[str, Any] = {"v_num_grad_steps": 4, "context_templates": ["{}"]}
    editor = Editor.from_pretrained("factworld:llama", method="alphaedit", hparams=quick)
    patch = editor.compute(editor.host.dataset("factworld").requests()[:4])
    for layer, operation in enumerate(patch.operations):
        keys, bound = keys_of(editor, layer, documents), patch.state.config["null_spaces"][layer]["eigenvalue_below"]
        own = patch.state.tensors[f"keys.{layer}.mlp_out"]
        moved = {
            name: float((keys @ delta.T).square().sum(1).mean() / delta.norm() ** 2)
            for name, delta in (("inside", operation.left @ operation.right), ("bare", operation.left @ own))  # type: ignore[union-attr]
        }
        assert 0 < moved["inside"] <= 2 * bound
        assert moved["bare"] > 2 * bound, "else the test says nothing"
    assert layer == 1


def test_l2_in_units_of_ordinary_keys(tmp_path: Path) -> None:
    """Of their mean squared length inside the null space."""
    in_keys = spread_editor("gpt2", tmp_path, "alphaedit", l2=0.01, l2_unit="keys", layers=[1])
    space = inside(in_keys, 1)
    amount = 0.01 * float(torch.trace(space.T @ matrices_of(in_keys)[1] @ space))
    absolute = spread_editor("gpt2", tmp_path, "alphaedit", l2=amount, layers=[1])
    patch = in_keys.compute(FIRST)
    assert apart(patch, absolute.compute(FIRST)) < 1e-10
    assert patch.state.config["null_spaces"][0]["l2"] == pytest.approx(amount)


def test_the_gap_falls_from_turn_to_turn_where_the_ridge_lets_it(tmp_path: Path) -> None:
    model, tokenizer = tiny("gpt2", dtype=torch.float64, n_layer=6)
    view = Editor(model, tokenizer).adapter
    statistics = [made_up(view, layer) for layer in range(3)]
    editor = spread_editor("gpt2", tmp_path, "alphaedit", model=model, statistics=statistics, layers=(0, 1, 2))
    config = editor.compute(FIRST).state.config
    assert all(solve["smallest_share"] > 0.5 for solve in config["solves"])
    gaps = [*(turn["gap"] for turn in config["turns"]), config["gap_left"]]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.5 * gaps[0]


# ------------------------------------------------------------------ after an edit
def test_the_same_facts_again_ask_for_little(tmp_path: Path) -> None:
    """What is left is small, and the first edit's own keys are protected."""
    editor = spread_editor("gpt2", tmp_path, "alphaedit", l2=0.01, layers=[1], context_templates=["{}"])
    patch = editor.edit(FIRST, evaluate=False).patch
    context = editor.context()
    hparams: Any = context.hparams
    rows = [rewrite(context.tokens, each, ["{}"]) for each in editor.host.prepare_requests(context, FIRST)]
    goal = Goal(Site(1, "block", "output"), patch.state.tensors["targets.block"])
    written = spread(context, rows, hparams, {"mlp_out": goal}, NullSpaceSolver(context, hparams), keep_keys=False)
    (delta,) = written.deltas
    assert float((delta.left @ delta.right).norm()) < 0.01 * float(deltas_of(patch)[PLACES[1]].norm())


def test_later_edits_change_earlier_ones_less_with_their_keys_protected(tmp_path: Path) -> None:
    """The outputs of the edited layers for the first batch's keys; S against S = 0."""
    changed = {}
    for protect in (True, False):
        editor = spread_editor("gpt2", tmp_path, "alphaedit", protect_past=protect)
        first = editor.edit(FIRST, evaluate=False).patch
        plain = PlainSpread(editor, FIRST, TEMPLATES)
        plain.write(first)
        keys = {place: plain.keys(layer) for layer, place in enumerate(PLACES)}
        later = deltas_of(editor.compute(LATER))
        changed[protect] = [float((later[place] @ keys[place]).norm() / later[place].norm()) for place in PLACES]
        assert any(name.startswith("keys.") for name in first.state.tensors) is protect
    for with_keys, without in zip(changed[True], changed[False], strict=True):
        assert with_keys < 0.5 * without


def test_undoing_gives_back_weights_and_keys(tmp_path: Path) -> None:
    """S is what the patches on the model hold, so undoing one needs nothing else, and the same edit gives the same."""
    editor = spread_editor("gpt2", tmp_path, "alphaedit")
    editor.edit(FIRST, evaluate=False)
    before = Snapshot(editor.model)
    made = editor.edit(LATER, evaluate=False).patch
    editor.remove(made)
    assert before.differences(editor.model) == []
    assert editor.edit(LATER, evaluate=False).patch.to_bytes() == made.to_bytes()


# ------------------------------------------------------------------ refusals and warnings
def test_a_space_without_any_direction_is_refused_before_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(*args: Any, **kwargs: Any) -> None:
        raise InputError("searched")

    monkeypatch.setattr(AlphaEdit, "values", search)
    for settings in ({"nullspace_threshold": 1e-9}, {"nullspace_rule": "energy", "nullspace_energy": 1e-12}):
        with pytest.raises(MethodError, match=r"leaves 0 of 80 directions .* of layer 0"):
            spread_editor("gpt2", tmp_path, "alphaedit", **settings).edit(PARIS)
    with pytest.raises(MethodError, match="leaves 81 of 80 directions"):
        spread_editor("gpt2", tmp_path, "alphaedit", nullspace_rule="rank", nullspace_rank=81).edit(PARIS)
    with pytest.raises(MethodError, match="mom2_adjustment=false leaves nothing"):
        spread_editor("gpt2", tmp_path, "alphaedit", mom2_adjustment=False).edit(PARIS)


@pytest.mark.parametrize(("rank", "warned"), [(8, True), (23, True), (24, False), (78, False), (80, True)])
def test_an_unusual_share_of_directions_is_told(rank: int, warned: bool, tmp_path: Path) -> None:
    editor = spread_editor("gpt2", tmp_path, "alphaedit", nullspace_rule="rank", nullspace_rank=rank, layers=[1])
    told = codes(editor.edit(PARIS, evaluate=False).warnings)
    assert told.get("unusual_null_space") == (rank / 80 if warned else None)


def test_a_ridge_that_holds_nearly_all_is_told(tmp_path: Path) -> None:
    """Below 0.3, as the published ridge does where keys are small."""
    editor = spread_editor("gpt2", tmp_path, "alphaedit", layers=[1])
    plain = PlainSpread(editor, FIRST, TEMPLATES)
    gain = float((inside(editor, 1).T @ plain.keys(1)).square().sum(0).mean())
    for l2, warned in ((gain, False), (gain * 4, True)):  # a share of a half, and of a fifth
        made = spread_editor("gpt2", tmp_path, "alphaedit", layers=[1], l2=l2).edit(FIRST, evaluate=False)
        assert ("little_is_written" in codes(made.warnings)) is warned
        if warned:
            assert codes(made.warnings)["little_is_written"] == pytest.approx(0.2, abs=0.1)


@pytest.mark.parametrize(
    "wrong",
    [{"nullspace_rule": "rank"}, {"nullspace_rank": 3}, {"l2": 0}, {"nullspace_energy": 1.0},
     {"nullspace_threshold": 0}, {"nullspace_rule": "share"}, {"l2_unit": "percent"}],
    ids=str,
)  # fmt: skip
def test_settings_that_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(HyperParamsError):
        AlphaEditHyperParams.from_dict({"layers": [1], **wrong})
