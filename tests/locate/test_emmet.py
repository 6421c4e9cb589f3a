"""EMMET through the Editor: its closed form, its kinship with MEMIT and R-ROME, and the facts it must refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from locate_tools import MIRA, OREN, PARIS, TEMPLATES
from plain_spread import PlainSpread, deltas_of, equality
from spread_editors import apart, codes, matrices_of, relative, spread_editor

from kedit_core.errors import HyperParamsError, InputError, MethodError
from kedit_core.testing.snapshot import Snapshot
from kedit_methods_locate import emmet
from kedit_methods_locate.hparams import EmmetHyperParams
from kedit_methods_locate.solvers import EqualitySolver

FACTS = (PARIS, MIRA, OREN)
PLACE = "transformer.h.1.mlp.c_proj.weight"
RIVER = evolve(PARIS, prompt="The capital of France was", target_new="Eskel")
SEINE = evolve(PARIS, prompt="The river of France is", target_new="Eskel")


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize(
    ("layers", "settings"),
    [((1,), {}), ((1,), {"update_norm_lambda": 3.0}), ((1,), {"exact": True}), ((0, 2), {"emmet_lambda": 0.05})],
    ids=["epsilon", "mu", "exact", "two layers"],
)
def test_deltas_are_the_plain_loops(
    family: str, layers: tuple[int, ...], settings: dict[str, Any], tmp_path: Path
) -> None:
    editor = spread_editor(family, tmp_path, "emmet", layers=layers, **settings)
    patch = editor.compute(FACTS)
    exact, mu = settings.get("exact", False), settings.get("update_norm_lambda", 0.0)
    epsilon = 0.0 if exact else settings.get("emmet_lambda", 0.5)
    wanted = PlainSpread(editor, FACTS, TEMPLATES).spread(
        layers, patch.state.tensors["targets.block"], equality(matrices_of(editor), 40.0, mu, epsilon)
    )
    for layer in layers:
        # exact has a jitter of 1e-10 of the mean diagonal
        assert relative(deltas_of(patch)[editor.adapter.mlp_out_weight(layer)], wanted[layer]) < (
            1e-7 if exact else 1e-8
        )
    assert patch.state.config["ridge"] == 40.0 * epsilon
    assert set(patch.state.tensors) == {"targets.block"}, "no keys are kept: EMMET knows of no earlier edits"


def test_it_is_memit_with_lambda_alpha_epsilon(tmp_path: Path) -> None:
    made = spread_editor("gpt2", tmp_path, "emmet", mom2_update_weight=80.0, emmet_lambda=0.25).compute(FACTS)
    memit = spread_editor("gpt2", tmp_path, "memit", mom2_update_weight=20.0).compute(FACTS)
    assert apart(made, memit) < 1e-7
    assert made.state.config["ridge"] == 20.0
    for mine, theirs in zip(made.state.config["solves"], memit.state.config["solves"], strict=True):
        assert mine["smallest_share"] == pytest.approx(theirs["smallest_share"], rel=1e-8)


def test_one_fact_is_r_rome_with_the_same_key_and_residual(tmp_path: Path) -> None:
    """As in the authors' code there is no epsilon for one fact: ``E k^T C^-1 / (k^T C^-1 k)``, whatever alpha."""
    editor = spread_editor("gpt2", tmp_path, "emmet", layers=[1])
    patch = editor.compute(PARIS)
    plain = PlainSpread(editor, [PARIS], TEMPLATES)
    key, inverse = plain.keys(1)[:, 0], torch.linalg.inv(matrices_of(editor)[1])
    residual = patch.state.tensors["targets.block"][0] - plain.states(plain.view.block(1))[:, 0]
    wanted = torch.outer(residual, inverse @ key / (key @ inverse @ key))
    assert relative(deltas_of(patch)[PLACE], wanted) < 1e-10
    assert patch.state.config["ridge"] == 0
    assert patch.state.config["solves"][0]["smallest_share"] == 1
    scaled = spread_editor("gpt2", tmp_path, "emmet", layers=[1], mom2_update_weight=4000.0).compute(PARIS)
    assert apart(scaled, patch) < 1e-10
    # with epsilon it is that, shrunk by g / (g + epsilon)
    ridged = spread_editor("gpt2", tmp_path, "emmet", layers=[1], ridge_for_one=True).compute(PARIS)
    gain = float(key @ inverse @ key) / 40
    assert relative(deltas_of(ridged)[PLACE], wanted * gain / (gain + 0.5)) < 1e-10
    assert ridged.state.config["ridge"] == 20.0


def test_exact_reaches_every_target(tmp_path: Path) -> None:
    """One layer and one context, so that what is asked of the layer is what the block needs."""
    editor = spread_editor("gpt2", tmp_path, "emmet", layers=[1], context_templates=["{}"], exact=True)
    patch = editor.compute(FACTS)
    plain = PlainSpread(editor, FACTS, ["{}"])
    plain.write(patch)
    assert relative(plain.states(plain.view.block(1)), patch.state.tensors["targets.block"].T) < 1e-6
    assert patch.state.config["gap_left"] < 1e-6 * patch.state.config["turns"][0]["gap"]
    assert patch.state.config["solves"][0]["smallest_share"] == 1


def test_facts_of_one_key_are_refused_by_name_before_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder's key knows nothing of what follows the subject, so only these two collide."""

    def search(*args: Any, **kwargs: Any) -> None:
        raise InputError("searched")

    monkeypatch.setattr(emmet.SpreadMethod, "values", search)
    for settings in ({"exact": True}, {"emmet_lambda": 0}):
        editor = spread_editor("gpt2", tmp_path, "emmet", **settings)
        before = Snapshot(editor.model)
        for call in (editor.compute, editor.edit):
            with pytest.raises(MethodError, match="one and the same key") as caught:
                call([MIRA, PARIS, SEINE, RIVER])
            told = str(caught.value)
            assert repr(PARIS.prompt) in told and repr(RIVER.prompt) in told
            assert MIRA.prompt not in told and SEINE.prompt not in told
        assert before.differences(editor.model) == [] and editor.stack.patches == ()
    with pytest.raises(InputError, match="searched"):
        spread_editor("gpt2", tmp_path, "emmet").compute([PARIS, RIVER])
    with pytest.raises(InputError, match="searched"):
        spread_editor("t5", tmp_path, "emmet", exact=True).compute([PARIS, RIVER])  # an encoder reads both ways


def test_with_epsilon_facts_of_one_key_share(tmp_path: Path) -> None:
    """Contradicting facts stay finite, and each is moved towards what it asks for by half."""
    editor = spread_editor("gpt2", tmp_path, "emmet", layers=[1], context_templates=["{}"], emmet_lambda=1e-6)
    patch = editor.compute([PARIS, RIVER])
    plain = PlainSpread(editor, [PARIS], ["{}"])
    plain.write(patch)
    mean = patch.state.tensors["targets.block"].mean(0)
    assert relative(plain.states(plain.view.block(1))[:, 0], mean) < 1e-3


def test_keys_that_turn_out_equal_are_refused_by_name(tmp_path: Path) -> None:
    """Rows that differ may still give one key; the solve finds out."""
    editor = spread_editor("gpt2", tmp_path, "emmet", exact=True)
    context = editor.context()
    requests = tuple(editor.host.prepare_requests(context, FACTS))
    solver = EqualitySolver(context, requests, editor.settings.hparams)  # type: ignore[union-attr]
    keys = torch.randn(80, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keys[:, 2] = keys[:, 0]
    with pytest.raises(MethodError, match="equal keys at layer 1") as caught:
        solver(1, "mlp_out", keys)
    assert repr(PARIS.prompt) in str(caught.value) and repr(OREN.prompt) in str(caught.value)
    assert MIRA.prompt not in str(caught.value)


def test_what_epsilon_holds_back_is_told(tmp_path: Path) -> None:
    editor = spread_editor("gpt2", tmp_path, "emmet", layers=[1], emmet_lambda=1e4)
    result = editor.edit(FACTS, evaluate=False)
    assert codes(result.warnings)["little_is_written"] < 0.1
    quiet = spread_editor("gpt2", tmp_path, "emmet", layers=[1]).edit(FACTS, evaluate=False)
    assert "little_is_written" not in codes(quiet.warnings)


# ------------------------------------------------------------------ the ridge in one number
def test_a_ridge_given_directly_is_lambda(tmp_path: Path) -> None:
    """Whatever alpha and epsilon are; it is recorded."""
    memit = spread_editor("gpt2", tmp_path, "memit", mom2_update_weight=20.0).compute(FACTS)
    for alpha in (1.0, 40.0, 7000.0):
        made = spread_editor("gpt2", tmp_path, "emmet", mom2_update_weight=alpha, emmet_lambda=9.0, ridge=20.0)
        patch = made.compute(FACTS)
        assert apart(patch, memit) < 1e-7
        assert patch.state.config["ridge"] == pytest.approx(20.0, rel=1e-12)
        assert patch.hparams["ridge"] == 20.0
    by_epsilon = spread_editor("gpt2", tmp_path, "emmet", mom2_update_weight=80.0, emmet_lambda=0.25).compute(FACTS)
    assert apart(by_epsilon, memit) < 1e-7
    none = spread_editor("gpt2", tmp_path, "emmet", ridge=0.0, layers=[1], context_templates=["{}"]).compute(FACTS)
    assert none.state.config["ridge"] == 0
    assert none.state.config["gap_left"] < 1e-6 * none.state.config["turns"][0]["gap"], "no ridge is exact"


@pytest.mark.parametrize("wrong", [{"ridge": -1}, {"ridge": 5.0, "exact": True}], ids=str)
def test_ridges_that_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(HyperParamsError):
        EmmetHyperParams.from_dict({"layers": [1], **wrong})
