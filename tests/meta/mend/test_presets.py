"""Presets of training MEND and MALMEN: whole, for shapes of their own, and with the published settings."""

from __future__ import annotations

import pytest
from meta_tools import catalogue

from kedit_core.hparams import ModelShape, load_presets
from kedit_methods_meta.hparams.malmen import MalmenTrainingHyperParams
from kedit_methods_meta.hparams.mend import MendTrainingHyperParams

CLASSES = {"mend": MendTrainingHyperParams, "malmen": MalmenTrainingHyperParams}


@pytest.mark.parametrize("method", sorted(CLASSES))
def test_every_preset_is_valid_and_says_where_it_is_from(method: str) -> None:
    presets = load_presets(f"kedit_methods_meta:presets/{method}_training")
    assert len(presets) >= 6
    for preset in presets:
        made = CLASSES[method].from_dict(preset.hparams, preset.name)
        assert made.layers
        assert preset.origin


def test_published_settings_are_found_by_shape() -> None:
    presets = load_presets("kedit_methods_meta:presets/mend_training")
    shape = ModelShape(architecture="GPT2LMHeadModel", num_layers=48, hidden_size=1600, mlp_size=6400)
    (found,) = [preset for preset in presets if preset.fits(shape)]
    made = MendTrainingHyperParams.from_dict(found.hparams)
    assert (made.layers, made.rank, made.lr, made.edit_lr) == ((45, 46, 47), 1920, 1e-6, 1e-4)
    assert (made.c_edit, made.c_loc, made.accumulate, made.clip, made.sign) == (0.1, 1.0, 10, 100.0, -1)


def test_the_methods_describe_themselves() -> None:
    for name in CLASSES:
        info = catalogue().method(name)
        assert (info.family, info.resources) == ("meta", ("editor",))
        assert info.scenarios == {"single", "batch", "sequential"}
        assert info.training_presets == f"kedit_methods_meta:presets/{name}_training"
