"""Presets: the published numbers, and that every file is published or of a shipped model."""

from __future__ import annotations

import pytest

from kedit_core.hparams import ModelShape, load_presets, resolve
from kedit_methods_memory.hparams.grace import GraceHyperParams
from kedit_methods_memory.methods import grace

# shape -> layer, part, steps, where a value stands
PUBLISHED = {
    ("T5ForConditionalGeneration", 8, 512, 1024): (4, "mlp_out", 100, "replace_prompt"),
    ("GPT2LMHeadModel", 48, 1600, 6400): (35, "mlp_in", 200, "replace_last"),
    ("GPTJForCausalLM", 28, 4096, 16384): (25, "mlp_out", 200, "replace_last"),
    ("LlamaForCausalLM", 32, 4096, 11008): (27, "mlp_out", 50, "replace_last"),
    ("LlamaForCausalLM", 28, 3072, 8192): (27, "mlp_out", 50, "replace_last"),
    ("Qwen2ForCausalLM", 28, 3584, 18944): (18, "mlp_out", 50, "replace_last"),
}


def settings(architecture: str, layers: int, width: int, inner: int) -> GraceHyperParams:
    shape = ModelShape(architecture=architecture, num_layers=layers, hidden_size=width, mlp_size=inner)
    return resolve(GraceHyperParams, shape, presets=grace.presets).hparams


@pytest.mark.parametrize("shape", PUBLISHED)
def test_published_settings(shape: tuple[str, int, int, int]) -> None:
    """Specification: GRACE, the table of hyper-parameters and the line below it; gpt2-xl as in EasyEdit."""
    found = settings(*shape)
    assert (found.layer, found.part, found.n_iter, found.replacement) == PUBLISHED[shape]
    assert (found.eps0, found.edit_lr, found.value_init, found.expand) == (1.0, 1.0, "cold", "coverage")
    assert (found.duplicate_policy, found.compat) == ("overwrite", "none")


def test_every_preset_is_published_or_of_a_shipped_model() -> None:
    assert grace.presets is not None
    presets = load_presets(grace.presets)
    shapes = {(shape.architecture, shape.num_layers, shape.hidden_size) for each in presets for shape in each.shapes}
    factworld = {("LlamaForCausalLM", 6, 192), ("GPT2LMHeadModel", 6, 192)}
    assert shapes == {shape[:3] for shape in PUBLISHED} | factworld
    assert all(each.origin for each in presets)


@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        (("LlamaForCausalLM", 40, 5120, 13824), 34),  # 27 of 32
        (("GPT2LMHeadModel", 24, 1024, 4096), 18),  # 35 of 48
        (("T5ForConditionalGeneration", 12, 768, 3072), 6),
    ],
)
def test_other_models_get_a_layer_in_proportion(shape: tuple[str, int, int, int], layer: int) -> None:
    assert settings(*shape).layer == layer
