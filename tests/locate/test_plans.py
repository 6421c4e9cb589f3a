"""The plans of MEMIT, EMMET, PMET and AlphaEdit: what would change and what it would take, with nothing changed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from locate_tools import MIRA, OREN, PARIS
from spread_editors import METHODS, spread_editor

from kedit_core import EditPatch
from kedit_core.errors import InputError
from kedit_core.testing.snapshot import Snapshot
from kedit_methods_locate import planning

FACTS = (PARIS, MIRA, OREN)
BOTH = {"projections": ["attn_out", "mlp_out"]}


def tensor_bytes(patch: EditPatch) -> int:
    tensors = [*patch.state.tensors.values()]
    for operation in patch.operations:
        tensors += [operation.left, operation.right]  # type: ignore[union-attr]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize(
    ("method", "more"),
    [*((method, {}) for method in METHODS), ("pmet", BOTH), ("memit", {"protect_past": False})],
    ids=str,
)
def test_what_it_tells(method: str, more: dict[str, Any], tmp_path: Path) -> None:
    editor = spread_editor("gpt2", tmp_path, method, dtype=torch.float32, **more)
    before = Snapshot(editor.model)
    plan = editor.plan(FACTS)
    assert before.differences(editor.model) == [] and editor.stack.patches == ()
    patch = editor.compute(FACTS)
    assert plan["places"] == [operation.place for operation in patch.operations]  # type: ignore[union-attr]
    assert plan["patch_bytes"] == tensor_bytes(patch)
    assert plan["seconds"] > 0
    widths = [80, 80] if not more.get("projections") else [80, 80, 32, 32]
    statistics = sum(12 * width**2 for width in widths)
    assert plan["memory_bytes"] > statistics
    if method != "alphaedit":  # which is nothing without a statistic
        without = spread_editor("gpt2", tmp_path, method, dtype=torch.float32, mom2_adjustment=False, **more)
        told = without.plan(FACTS)
        assert plan["memory_bytes"] - told["memory_bytes"] == statistics + 16 * 80**2
        assert "statistic: not used (identity)" in told["notes"]
    source = f"from {editor.options['stats']}"
    wanted = [f"statistic of layer {layer}: {source}" for layer in (0, 1)]
    if more.get("projections"):
        wanted += [f"statistic of layer {layer} (attention): {source}" for layer in (0, 1)]
    assert sorted(plan["notes"][:-1]) == sorted(wanted)
    assert "without collecting statistics" in plan["notes"][-1]


def test_time_and_memory_grow_with_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that counts passes through the last block."""
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    monkeypatch.setattr(planning, "time", SimpleNamespace(perf_counter=lambda: float(passes)))
    plans = {}
    for steps in (2, 12):
        editor = spread_editor("gpt2", tmp_path, v_num_grad_steps=steps)
        editor.adapter.block(2).register_forward_pre_hook(count)
        plans[steps] = editor.plan(FACTS)
        alone = editor.plan(PARIS)
        assert plans[steps]["patch_bytes"] == 3 * alone["patch_bytes"]
        assert plans[steps]["memory_bytes"] > alone["memory_bytes"]
        assert plans[steps]["seconds"] > alone["seconds"]
    # two of the three requests are timed; ten more passes of the search cost ten passes, and half as much again
    assert plans[12]["seconds"] - plans[2]["seconds"] == 10 * 3 / 2


def test_nothing_is_collected_or_put_on_the_model(tmp_path: Path) -> None:
    """Without a statistic at hand it says where one would come from; with patches on the model these stay."""
    editor = spread_editor("gpt2", tmp_path, "pmet", projections=["attn_out"])
    patch = editor.edit(PARIS, evaluate=False).patch
    before = Snapshot(editor.model)
    assert editor.plan(MIRA)["places"] == ["transformer.h.0.attn.c_proj.weight", "transformer.h.1.attn.c_proj.weight"]
    assert before.differences(editor.model) == []
    assert [entry.patch.id for entry in editor.stack.patches] == [patch.id]
    bare = spread_editor("gpt2", tmp_path)
    del bare.options["stats"]
    bare.cache = tmp_path / "empty"
    notes = bare.plan(PARIS)["notes"]
    assert "statistic of layer 0: to be collected from 800 tokens that the model writes itself" in notes[0]
    assert not bare.cache.exists()


@pytest.mark.parametrize("method", METHODS)
def test_layers_the_model_has_not_are_refused_before_any_work(method: str, tmp_path: Path) -> None:
    for settings, why in (
        (
            {"layers": [1, 7]},
            r"layer 7 is not in this model of 3 layers \(0 to 2\); choose layers among these",
        ),
        ({"v_loss_layer": 3}, "v_loss_layer 3 is not in this model of 3 layers"),
    ):
        editor = spread_editor("gpt2", tmp_path, method, **settings)
        for call in (editor.edit, editor.compute, editor.plan):
            with pytest.raises(InputError, match=why):
                call(FACTS)
    assert not (tmp_path / "cache").exists()
