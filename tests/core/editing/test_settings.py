"""Settings given to an Editor."""

from __future__ import annotations

from typing import Any

import pytest
import toy_methods

from kedit_core.editing.settings import resolve_settings
from kedit_core.errors import InputError
from kedit_core.hparams import ModelShape
from kedit_core.plugins import Catalogue

CATALOGUE = Catalogue.installed().including(*toy_methods.ALL)
SHAPE = ModelShape(architecture="LlamaForCausalLM", num_layers=2, hidden_size=32)


@pytest.mark.parametrize("given", [5, ["strength=2.0"], toy_methods.NudgeHyperParams])
def test_what_is_no_settings_is_refused_and_not_ignored(given: Any) -> None:
    with pytest.raises(InputError, match="settings are a mapping, the path of a file or a NudgeHyperParams, and got"):
        resolve_settings(CATALOGUE, CATALOGUE.method("nudge"), SHAPE, given, (), None)


def test_overrides_win_over_a_mapping() -> None:
    found = resolve_settings(
        CATALOGUE, CATALOGUE.method("nudge"), SHAPE, {"strength": 2.0, "layer": 0}, ["layer=1"], None
    )
    assert found is not None and (found.hparams.strength, found.hparams.layer) == (2.0, 1)


def test_a_preset_beside_whole_settings_is_refused_and_not_ignored() -> None:
    with pytest.raises(InputError, match="a whole NudgeHyperParams was given, which leaves nothing to the preset"):
        resolve_settings(CATALOGUE, CATALOGUE.method("nudge"), SHAPE, toy_methods.NudgeHyperParams(), (), "mine.yaml")
