"""Where models come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from kedit_core.editing.sources import ModelFolder, load_model
from kedit_core.errors import InputError
from kedit_core.testing.tiny import tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder: Path = tmp_path_factory.mktemp("model")
    for part in tiny("gpt2"):
        part.save_pretrained(folder)
    return ModelFolder(folder=folder)


@pytest.mark.parametrize("device", ["nonsense", "cuda:9999", "cuda:-3"])
def test_a_device_that_is_not_there_is_refused(source: ModelFolder, device: str) -> None:
    with pytest.raises(InputError, match=rf"the device '{device}' cannot be used \(.*\); choose another"):
        load_model(source, device=device)


@pytest.mark.parametrize("dtype", ["int8", "nonsense", "float8_e4m3fn", "complex64"])
def test_a_dtype_that_cannot_be_computed_in_is_refused(source: ModelFolder, dtype: str) -> None:
    with pytest.raises(InputError, match=f"'{dtype}' is no dtype that kedit computes in; use float32"):
        load_model(source, dtype=dtype)


def test_dtype_and_device_by_name(source: ModelFolder) -> None:
    model, _ = load_model(source, dtype="bfloat16", device="cpu")
    assert str(model.dtype) == "torch.bfloat16" and model.device.type == "cpu" and not model.training


def test_weights_cut_short_are_told_in_one_sentence(source: ModelFolder, tmp_path: Path) -> None:
    shutil.copytree(source.folder, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"cannot load the model in .*cut: "):
        load_model(ModelFolder(folder=tmp_path / "cut"))


def test_weights_that_are_not_there_are_not_made_up(source: ModelFolder, tmp_path: Path) -> None:
    shutil.copytree(source.folder, tmp_path / "less")
    weights = tmp_path / "less" / "model.safetensors"
    tensors = load_file(weights)
    gone = sorted(name for name in tensors if "mlp" in name)[:2]
    save_file({name: tensor for name, tensor in tensors.items() if name not in gone}, weights, {"format": "pt"})
    with pytest.raises(InputError, match=rf"lack '.*{gone[0]}' and 1 more, which transformers would fill at random"):
        load_model(ModelFolder(folder=tmp_path / "less"))


def test_code_of_a_folder_is_not_run_nor_asked_about(
    source: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers left alone asks on the terminal, and takes a stray "y" for a yes."""
    folder = tmp_path / "model"
    shutil.copytree(source.folder, folder)
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "mine.Config"}}
    (folder / "config.json").write_text(json.dumps(config))

    def asked(*_: object) -> str:
        (tmp_path / "asked").touch()
        return "y"

    monkeypatch.setattr("builtins.input", asked)
    with pytest.raises(InputError, match="cannot load the model in"):
        load_model(ModelFolder(folder=folder))
    assert not (tmp_path / "asked").exists() and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "spoilt", [{"hidden_size": "x", "n_embd": "x"}, {"dtype": "nonsense"}, {"n_head": 0}, {"n_layer": None}]
)
def test_settings_that_transformers_falls_over_end_in_one_sentence(
    source: ModelFolder, tmp_path: Path, spoilt: dict[str, object]
) -> None:
    folder = tmp_path / "spoilt"
    shutil.copytree(source.folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | spoilt))
    with pytest.raises(InputError, match="transformers cannot load the model in"):
        load_model(ModelFolder(folder=folder))
