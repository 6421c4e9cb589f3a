"""Presets: every file can be used, the published numbers, and what the shipped models make of theirs."""

from __future__ import annotations

import pytest

from kedit_core import Editor
from kedit_core.editing.datasets import open_requests
from kedit_core.hparams import ModelShape, load_presets, resolve
from kedit_methods_memory.hparams.wise import WiseHyperParams
from kedit_methods_memory.methods import wise

# shape (and the MLP's width where it matters) -> layer, lr, steps, margins, act_ratio, part
PUBLISHED = {
    ("LlamaForCausalLM", 32, 4096, 11008): (27, 1.0, 70, (5, 20, 10), 0.88, "mlp_out"),
    ("MistralForCausalLM", 32, 4096, 14336): (27, 1.0, 70, (5, 20, 10), 0.88, "mlp_out"),
    ("LlamaForCausalLM", 28, 3072, 8192): (27, 1.0, 70, (5, 20, 10), 0.88, "mlp_out"),
    ("LlamaForCausalLM", 32, 4096, 14336): (29, 0.9, 30, (2, 20, 10), 0.5, "mlp_out"),
    ("Qwen2ForCausalLM", 28, 3584, 18944): (23, 1.0, 70, (5, 20, 10), 0.88, "mlp_out"),
    ("GPTJForCausalLM", 28, 4096, 16384): (21, 1.0, 70, (15, 40, 20), 0.88, "mlp_out"),
    ("GPT2LMHeadModel", 12, 768, 3072): (8, 1.0, 40, (5, 20, 10), 0.8, "mlp_in"),
}


@pytest.mark.parametrize("shape", PUBLISHED)
def test_published_settings(shape: tuple[str, int, int, int]) -> None:
    """Specification: WISE, the table of hyper-parameters and the line below it."""
    architecture, layers, width, inner = shape
    found = resolve(
        WiseHyperParams,
        ModelShape(architecture=architecture, num_layers=layers, hidden_size=width, mlp_size=inner),
        presets=wise.presets,
    ).hparams
    margins = (found.alpha, found.beta, found.gamma)
    assert (found.layer, found.lr, found.n_iter, margins, found.act_ratio, found.part) == PUBLISHED[shape]
    assert (found.rho, found.norm_constraint, found.density, found.weights) == (0.2, 1.0, 0.53, 1.0)
    assert (found.save_freq, found.merge_freq, found.merge_alg) == (500, 1000, "ties")
    assert found.retrieve and not found.replay and found.weight_decay == 1e-5


def test_every_preset_is_published_or_of_a_shipped_model() -> None:
    assert wise.presets is not None
    shapes = {
        (shape.architecture, shape.num_layers, shape.hidden_size)
        for preset in load_presets(wise.presets)
        for shape in preset.shapes
    }
    factworld = {("LlamaForCausalLM", 6, 192), ("GPT2LMHeadModel", 6, 192)}
    assert shapes == {shape[:3] for shape in PUBLISHED} | factworld
    assert all(preset.origin for preset in load_presets(wise.presets))


def test_other_models_get_a_layer_in_proportion() -> None:
    shape = ModelShape(architecture="LlamaForCausalLM", num_layers=40, hidden_size=5120, mlp_size=13824)
    assert resolve(WiseHyperParams, shape, presets=wise.presets).hparams.layer == 34


@pytest.mark.slow
@pytest.mark.parametrize("model", ["factworld:llama", "factworld:gpt2"])
def test_facts_of_a_model_that_knows_some(model: str) -> None:
    """The new answers come, also to other wordings, and what is asked besides stays as it was."""
    editor = Editor.from_pretrained(model, "wise")
    requests = open_requests("factworld", editor.host)[100:101]
    evaluation = editor.edit(requests, scenario="single").evaluation
    assert evaluation is not None
    found = {name.partition(".")[2]: metric.value for name, metric in evaluation.metrics.items() if "gen_free" in name}
    assert found["reliability"] == 1.0
    assert found["generalization"] is not None and found["generalization"] >= 0.5
    assert found["locality"] is not None and found["locality"] >= 0.85
