"""Settings of KE's training: the published ones, and what FactWorld's models get."""

from __future__ import annotations

import pytest
import torch
from meta_tools import catalogue

from kedit_core import Editor
from kedit_core.hparams import ModelShape, load_presets, resolve
from kedit_core.training.run import training_context, training_settings
from kedit_factworld.training import training_cases
from kedit_methods_meta.hparams.ke import KeTrainingHyperParams
from kedit_methods_meta.ke import KeTrainer

PRESETS = "kedit_methods_meta:presets/ke_training"


def test_every_preset_is_valid_and_says_where_it_is_from() -> None:
    presets = load_presets(PRESETS)
    assert {preset.name for preset in presets} == {"factworld", "gpt2-xl", "gpt-j-6b", "t5-3b"}
    for preset in presets:
        KeTrainingHyperParams.from_dict(preset.hparams, preset.name)
        assert preset.origin


@pytest.mark.parametrize(
    ("shape", "layers"),
    [
        (("GPT2LMHeadModel", 48, 1600, 6400), (45, 46, 47)),
        (("GPTJForCausalLM", 28, 4096, 16384), (25, 26, 27)),
        (("T5ForConditionalGeneration", 24, 1024, 16384), (22, 23)),
    ],
)
def test_published_settings_of_the_port(shape: tuple[str, int, int, int], layers: tuple[int, ...]) -> None:
    known = ModelShape(architecture=shape[0], num_layers=shape[1], hidden_size=shape[2], mlp_size=shape[3])
    found = resolve(KeTrainingHyperParams, known, presets="kedit_methods_meta:presets/ke_training").hparams
    assert (found.loss, found.layers, found.lr, found.accumulate) == ("mend", layers, 1e-5, 10)
    assert (found.condition_size, found.lstm_size, found.head_size) == (768, 512, 512)
    assert (found.c_edit, found.c_loc, found.editable) == (0.1, 1.0, "chosen")


def test_settings_given_by_nobody_are_the_papers() -> None:
    found = KeTrainingHyperParams()
    assert (found.condition_size, found.lstm_size, found.head_size, found.max_scale) == (1024, 128, 128, 1.0)
    assert (found.lr, found.alpha_lr, found.warmup, found.updates) == (3e-4, 0.1, 1000, 200_000)
    assert (found.margin, found.margin_min, found.smoothing) == (1e-3, 1e-5, 0.1)


@pytest.mark.parametrize("model", ["factworld:llama", "factworld:gpt2"])
def test_factworlds_models_are_trained_with_their_preset(model: str) -> None:
    editor = Editor.from_pretrained(model, method="ke", catalogue=catalogue())
    found = training_settings(editor)
    assert any("factworld" in note for note in found.notes)
    hparams = found.hparams
    assert hparams.early_stop_key == "joint/acc" and hparams.updates == hparams.iterations
    cases = training_cases(32, part="train"), training_cases(16, part="validation")
    trainer = editor.host.make_trainer(training_context(editor, hparams, *cases), hparams)
    assert isinstance(trainer, KeTrainer)
    blocks = editor.adapter.num_layers
    assert len(trainer.module.places) == blocks * (7 if "llama" in model else 4)
    batch = trainer.draw(range(hparams.batch_size), torch.Generator().manual_seed(0))
    # with its own subject's probes that must stay first of all
    own = [{probe.prompt for some in each.request.locality.values() for probe in some} for each in batch.examples]
    assert all(some[0][0] in mine for some, mine in zip(batch.unrelated, own, strict=True))
    step = trainer.run_step(batch)
    assert bool(torch.isfinite(step.total)) and step.values["kept"][1] == hparams.batch_size * hparams.unrelated
