"""Layers by causal tracing for a model without a preset."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from attrs import evolve

from kedit_core import Editor, EditRequest
from kedit_core.plugins import Catalogue
from kedit_core.testing.tiny import tiny
from kedit_methods_locate import choosing
from kedit_methods_locate.tracing import TraceSettings

FACTS = [
    EditRequest(prompt=f"The capital of {land} is", subject=land, target_new="Rome")
    for land in ("France", "Germany", "Norway", "Alice", "Bob")
]


def editor(method: str, family: str = "llama", **settings: object) -> Editor:
    return Editor(*tiny(family), method, **settings)  # type: ignore[arg-type]


def test_layers_come_from_tracing_and_the_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    # the effects of random weights are small: take what there is
    monkeypatch.setattr(choosing, "_CLEAR", -1.0)
    for method, name in (("rome", "layer"), ("memit", "layers")):
        made = editor(method)
        plan = made.plan(FACTS)
        assert made.settings is not None
        assert made.settings.sources[name] == "causal tracing"
        assert "from causal tracing: MLPs around layer" in made.settings.brief[-1]
        assert len(plan["places"]) == 1


def test_a_small_effect_leaves_the_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "_CLEAR", 2.0)
    made = editor("memit")
    before = made.settings
    made.plan(FACTS)
    assert made.settings is not None and before is not None
    assert made.settings.hparams == before.hparams
    assert "which is little" in made.settings.brief[-1]


@pytest.mark.parametrize(("facts", "family"), [(FACTS[:3], "llama"), (FACTS, "t5")])
def test_where_nothing_is_traced(facts: list[EditRequest], family: str) -> None:
    made = editor("rome", family)
    made.plan(facts)
    assert made.settings is not None and made.settings.sources["layer"] == "depth"


def test_facts_the_model_does_not_know_are_not_counted() -> None:
    made = editor("rome")
    made.plan([evolve(fact, ground_truth="a wrong answer") for fact in FACTS])
    assert made.settings is not None and made.settings.sources["layer"] == "depth"
    assert "the model knows 0 of 5 facts" in made.settings.brief[-1]


def test_noise_that_half_precision_cannot_hold_leaves_the_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """The edit itself may still go well: it adds no noise."""
    monkeypatch.setattr(choosing, "TraceSettings", partial(TraceSettings, noise="1e6"))
    made = Editor(*tiny("gpt2", dtype=torch.float16), "rome")
    made.plan(FACTS)
    assert made.settings is not None and made.settings.sources["layer"] == "depth"
    assert "nothing was traced (the corrupted runs of 'The capital of France is'" in made.settings.brief[-1]


def test_layers_that_are_given_or_preset_stay(tmp_path: Path) -> None:
    made = editor("rome", hparams={"layer": 2})
    made.plan(FACTS)
    assert made.settings is not None and made.settings.hparams.layer == 2
    assert Catalogue.installed().method("rome").presets
    world = Editor.from_pretrained("factworld:llama", "rome")
    assert world.settings is not None and world.settings.undecided == ()
