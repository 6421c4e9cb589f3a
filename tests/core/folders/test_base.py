"""What a folder says of its parameters is what the stack says of the loaded model."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from core.patches.patch_kit import patch_of
from safetensors.torch import load_file, save_file

from kedit_core.errors import InputError, UnsupportedModelError
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


def test_a_config_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path) -> None:
    """Whatever transformers falls over: values of other types, of no meaning, and numbers that fit nothing."""
    tiny_model("llama").save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "config.json"
    config = json.loads(file.read_text())
    for spoilt in (
        {"dtype": "nonsense"},
        {"dtype": "float8_e4m3fn"},
        {"hidden_size": "x"},
        {"num_attention_heads": 0},
        {"rope_parameters": {"rope_type": "none"}},
        {"vocab_size": -3},
        {"pad_token_id": 10**9},
        {"model_type": ["llama"]},
    ):
        file.write_text(json.dumps({**config, **spoilt}))
        with pytest.raises(UnsupportedModelError, match="transformers cannot") as caught:
            FolderBase.open(tmp_path / "base")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_code_of_a_folder_is_never_run_nor_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "base"
    tiny_model("llama").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "theirs.Theirs", "AutoModelForCausalLM": "theirs.Theirs"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "theirs", "auto_map": auto}))
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Theirs: pass\n")
    asked: list[object] = []
    monkeypatch.setattr(builtins, "input", lambda *text: asked.append(text) or "y")
    with pytest.raises(UnsupportedModelError, match="cannot read the config"):
        FolderBase.open(folder)
    assert not asked and not (tmp_path / "ran").exists()


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
