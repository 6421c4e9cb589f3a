"""Settings that only follow from the depth, decided by a look at the model."""

from __future__ import annotations

from typing import Any

import pytest
import toy_methods

from kedit_core import Editor, EditRequest
from kedit_core.errors import MethodError, PluginError
from kedit_core.plugins import Catalogue
from kedit_core.testing.tiny import tiny

CATALOGUE = Catalogue.installed().including(*toy_methods.ALL)


def editor(method: str = "chooses", **settings: Any) -> Editor:
    return Editor(*tiny("llama"), method, catalogue=CATALOGUE, **settings)


def fact(choose: Any = None) -> EditRequest:
    meta = {} if choose is None else {"choose": choose}
    return EditRequest(prompt="The capital of France is", subject="France", target_new="Rome", meta=meta)


def test_a_choice_is_taken_told_and_kept() -> None:
    e = editor()
    result = e.edit(fact({"layer": 2}), evaluate=False)
    assert result.patch.places == ("model.layers.2.mlp.down_proj.weight",)
    assert result.patch.hparams["layer"] == 2
    assert result.hparams is not None and result.hparams.sources["layer"] == "a look"
    assert result.hparams.notes[-1] == "layer=2 from a look: it was asked for"
    e.restore()
    assert e.edit(fact({"layer": 1}), evaluate=False).patch.hparams["layer"] == 2, "asked once"


def test_plans_and_single_patches_choose_too() -> None:
    assert editor().plan(fact({"layer": 2}))["hparams"]["values"]["layer"] == 2
    assert editor().compute(fact({"layer": 2})).hparams["layer"] == 2


@pytest.mark.parametrize("settings", [{"hparams": {"layer": 1}}, {"overrides": ["layer=1"]}])
def test_what_the_user_set_is_not_asked_for(settings: dict[str, Any]) -> None:
    assert editor(**settings).compute(fact({"layer": 2})).hparams["layer"] == 1


def test_no_choice_leaves_the_depth() -> None:
    e = editor()
    assert e.compute(fact()).hparams["layer"] == 0
    assert e.settings is not None and e.settings.sources["layer"] == "depth"


def test_a_look_that_does_not_help_is_told() -> None:
    e = editor()
    assert e.compute(fact({})).hparams["layer"] == 0
    assert e.settings is not None and e.settings.brief[-1] == "a look: it was asked for"


@pytest.mark.parametrize("values", [{"strength": 1.0}, {"layer": "deep"}, {"nothing": 1}])
def test_what_cannot_be_taken_is_the_methods_fault(values: dict[str, Any]) -> None:
    with pytest.raises(PluginError, match="chose settings that cannot be taken") as caught:
        editor().compute(fact(values))
    assert caught.value.hook == "choose_hparams"


def test_looking_must_leave_the_model_alone() -> None:
    with pytest.raises(MethodError, match="choose_hparams"):
        editor("chooses_by_writing").compute(fact())
