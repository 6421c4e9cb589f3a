"""The presets: every file can be used, and takes hold of the model it is for."""

from __future__ import annotations

from importlib.resources import files

import pytest
import yaml

from kedit_core.hparams import ModelShape, resolve
from kedit_core.plugins import Catalogue
from kedit_methods_memory.hparams.t_patcher import TPatcherHyperParams

SHAPES = {
    "bart-base": ModelShape(architecture="BartForConditionalGeneration", num_layers=6, hidden_size=768),
    "factworld-gpt2": ModelShape(architecture="GPT2LMHeadModel", num_layers=6, hidden_size=192),
    "factworld-llama": ModelShape(architecture="LlamaForCausalLM", num_layers=6, hidden_size=192),
}


def test_there_is_a_shape_for_every_file() -> None:
    folder = files("kedit_methods_memory") / "presets" / "t_patcher"
    assert {each.name.removesuffix(".yaml") for each in folder.iterdir()} == set(SHAPES)
    for name in SHAPES:
        TPatcherHyperParams.from_dict(yaml.safe_load((folder / f"{name}.yaml").read_text())["hparams"])


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_it_takes_hold(name: str) -> None:
    info = Catalogue.installed().method("t_patcher")
    assert info.presets is not None
    found = resolve(TPatcherHyperParams, shape=SHAPES[name], presets=info.presets).hparams
    assert found != TPatcherHyperParams()
    assert (found.memory_margin_2 == -1.5) == name.startswith("factworld")
    assert found.label_smoothing == (0.1 if name == "bart-base" else 0.0)
