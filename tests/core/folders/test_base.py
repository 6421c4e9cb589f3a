"""What a folder says of its parameters is what the stack says of the loaded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from core.patches.patch_kit import patch_of
from safetensors.torch import load_file, save_file

from kedit_core.errors import InputError
from kedit_core.folders import FolderBase, apply_to_folder
from kedit_core.patches import LowRankDelta, ModuleOperation, PatchStack, RouterOperation
from kedit_core.testing.tiny import tiny_model

CASES = [("gpt2", torch.float32), ("llama", torch.bfloat16), ("t5", torch.float16), ("t5_gated", torch.float32)]


def load(folder: Path, like: Any) -> Any:
    return type(like).from_pretrained(folder, dtype="auto")


@pytest.mark.parametrize(("family", "dtype"), CASES, ids=[case[0] for case in CASES])
def test_a_folder_is_described_as_the_loaded_model(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(family, dtype=dtype)
    model.save_pretrained(tmp_path / "base", max_shard_size="30KB")
    live = load(tmp_path / "base", model)
    folder = FolderBase.open(tmp_path / "base")
    for places in ([name for name, _ in live.named_parameters()], [""], [folder_module(live)], []):
        described = folder.base_of(places, name="org/model", revision="abc")
        assert described == PatchStack.of(live).base_of(places, name="org/model", revision="abc")
        assert list(described.tensors) == list(PatchStack.of(live).base_of(places).tensors)


def folder_module(model: Any) -> str:
    """The module of a layer, which holds several parameters."""
    return next(name for name, _ in model.named_modules() if name.endswith((".1.mlp", ".1.layer.0")))


def test_operations_name_places_as_on_the_stack(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    place = "model.layers.1.mlp.down_proj.weight"
    operations = [
        LowRankDelta(place, torch.ones(32, 1), torch.ones(1, 80)),
        ModuleOperation(places=("model.layers.0.mlp",), kind="test.echo"),
        RouterOperation(kind="test.route"),
    ]
    described = FolderBase.open(tmp_path / "base").base_of(operations)
    assert described == PatchStack.of(load(tmp_path / "base", model)).base_of(operations)
    inside = {f"model.layers.0.mlp.{name}_proj.weight" for name in ("up", "gate", "down")}
    assert set(described.tensors) == {place, *inside}


def test_ties_are_those_of_the_folder(tmp_path: Path) -> None:
    """Stored twice with the same values: tied; with others: two parameters."""
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    place = "transformer.wte.weight"
    for change, aliases in ((0.0, ("lm_head.weight",)), (1.0, ())):
        tensors = load_file(file)
        save_file({**tensors, "lm_head.weight": tensors[place] + change}, file, metadata={"format": "pt"})
        folder = FolderBase.open(tmp_path / "base")
        assert folder.base_of([place]).tensors[place].aliases == aliases
        assert folder.base_of([""]) == PatchStack.of(load(tmp_path / "base", model)).base_of([""])


def test_what_is_no_place_is_refused(tmp_path: Path) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path / "base")
    folder = FolderBase.open(tmp_path / "base")
    for name, match in (("lm_head.weight", "tied to 'transformer.wte.weight'"), ("transformer.h.9", "no parameter")):
        with pytest.raises(InputError, match=match):
            folder.base_of([name])


def test_of_an_edited_folder_the_originals_or_what_is_there_now(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    place = "model.layers.1.mlp.down_proj.weight"
    delta = LowRankDelta(place, torch.ones(32, 1), torch.ones(1, 80))
    apply_to_folder(tmp_path / "base", patch_of(PatchStack.of(model), [delta]), tmp_path / "out")
    before = FolderBase.open(tmp_path / "base").base_of([place])
    assert FolderBase.open(tmp_path / "out").base_of([place]) == before
    now = FolderBase.open(tmp_path / "out", present=True).base_of([place])
    assert now == PatchStack.of(load(tmp_path / "out", model)).base_of([place]) != before
