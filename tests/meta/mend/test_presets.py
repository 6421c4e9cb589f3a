"""Presets of training MEND and MALMEN: whole, for shapes of their own, and with the published settings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from meta_tools import catalogue

from kedit_core import Editor
from kedit_core.hparams import load_presets
from kedit_core.testing.tiny import tiny_tokenizer
from kedit_core.training.run import training_settings
from kedit_methods_meta.hparams.malmen import MalmenTrainingHyperParams
from kedit_methods_meta.hparams.mend import MendTrainingHyperParams
from kedit_methods_meta.places import places_of

CLASSES = {"mend": MendTrainingHyperParams, "malmen": MalmenTrainingHyperParams}


@pytest.mark.parametrize("method", sorted(CLASSES))
def test_every_preset_is_valid_and_says_where_it_is_from(method: str) -> None:
    presets = load_presets(f"kedit_methods_meta:presets/{method}_training")
    assert len(presets) >= 6
    for preset in presets:
        made = CLASSES[method].from_dict(preset.hparams, preset.name)
        assert made.layers
        assert preset.origin


# the models' published shapes, as arguments of their configs
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", {}),
    "gpt2-xl": ("GPT2LMHeadModel", {"n_layer": 48, "n_embd": 1600, "n_head": 25}),
    "gpt-j-6b": ("GPTJForCausalLM", {}),
    "t5-3b": ("T5ForConditionalGeneration", {"d_model": 1024, "d_ff": 16384, "num_layers": 24, "num_heads": 32,
              "d_kv": 128}),
    "t5-xl": ("T5ForConditionalGeneration", {"d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32,
              "feed_forward_proj": "gated-gelu"}),
    "llama-2-7b": ("LlamaForCausalLM", {}),
    "llama-3-8b": ("LlamaForCausalLM", {"intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256}),
    "qwen2.5-7b": ("Qwen2ForCausalLM", {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
                   "num_attention_heads": 28, "num_key_value_heads": 4}),
}  # fmt: skip


@cache
def without_numbers(model: str) -> Any:
    """The model on the meta device."""
    kind, sizes = SHAPES[model]
    cls = getattr(transformers, kind)
    with torch.device("meta"):
        return cls(cls.config_class(**sizes))


def names(model: str, layers: Sequence[int], parts: Sequence[str]) -> set[str]:
    """Of the weights of these parts in these blocks, as the sheet's tables name them."""
    if model.startswith("t5"):
        sides = (("encoder", 1), ("decoder", 2))
        template = "{}.block.{}.layer.{}.DenseReluDense.{}.weight"
        return {template.format(side, n, last, part) for side, last in sides for n in layers for part in parts}
    blocks = "transformer.h" if model.startswith("gpt") else "model.layers"
    return {f"{blocks}.{n}.mlp.{part}.weight" for n in layers for part in parts}


GATED = ("gate_proj", "up_proj", "down_proj")
TABLE: list[tuple[str, str, Sequence[int], Sequence[str], dict[str, Any]]] = [
    ("mend", "gpt2-xl", (45, 46, 47), ("c_fc", "c_proj"), {}),
    ("mend", "gpt-j-6b", (25, 26, 27), ("fc_in", "fc_out"), {}),
    ("mend", "t5-3b", (22, 23), ("wi", "wo"), {}),
    ("mend", "t5-xl", (22, 23), ("wi_0", "wo"), {}),
    ("mend", "llama-2-7b", (29, 30, 31), GATED, {}),
    ("mend", "llama-3-8b", (29, 30, 31), GATED, {}),
    ("mend", "qwen2.5-7b", (25, 26, 27), GATED, {"iterations": 20_000}),
    ("malmen", "gpt2", range(6, 12), ("c_proj",), {}),
    ("malmen", "gpt-j-6b", range(22, 28), ("fc_out",), {}),
    ("malmen", "t5-xl", (22, 23), ("wi_0", "wo"), {}),
    ("malmen", "gpt2-xl", range(42, 48), ("c_proj",), {"batch_size": 1, "micro_batch": 1, "token": "mask"}),
    ("malmen", "llama-2-7b", range(26, 32), ("down_proj",), {}),
    ("malmen", "qwen2.5-7b", range(22, 28), ("down_proj",), {}),
]
COMMON: dict[str, dict[str, Any]] = {
    "mend": {
        "rank": 1920, "n_hidden": 1, "transform": "combined", "shared": True, "norm": True, "init": "id", "lr": 1e-6,
        "edit_lr": 1e-4, "c_edit": 0.1, "c_loc": 1.0, "batch_size": 1, "n_edits": 1, "accumulate": 10, "clip": 100.0,
        "patience": 20_000, "sign": -1,
    },
    "malmen": {
        "rank": 1920, "n_blocks": 2, "eta": 1e-6, "lr": 1e-5, "clip": 1.0, "chunk": 1024, "batch_size": 512,
        "micro_batch": 32, "token": "ans", "c_edit": 1.0, "c_loc": 1.0, "accumulate": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize(("method", "model", "layers", "parts", "more"), TABLE)
def test_a_models_preset_is_the_sheets(
    method: str, model: str, layers: Sequence[int], parts: Sequence[str], more: dict[str, Any]
) -> None:
    """On the model itself, without its numbers: the weights that are edited, by name, and every published setting."""
    editor = Editor(without_numbers(model), tiny_tokenizer("byte_bpe"), method)
    settings = training_settings(editor)
    places = places_of(editor.adapter, settings.hparams.parts, settings.hparams.layers, settings.hparams.decoder_layers)
    assert {place.name for place in places} == names(model, layers, parts)
    for name, value in {**COMMON[method], **more}.items():
        assert getattr(settings.hparams, name) == value, name


def test_the_methods_describe_themselves() -> None:
    for name in CLASSES:
        info = catalogue().method(name)
        assert (info.family, info.resources) == ("meta", ("editor",))
        assert info.scenarios == {"single", "batch", "sequential"}
        assert info.training_presets == f"kedit_methods_meta:presets/{name}_training"
