"""Settings of MEMIT, EMMET, PMET and AlphaEdit: the sheets' defaults, layers by depth, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from kedit_core.errors import HyperParamsError
from kedit_core.hparams import ModelShape, resolve
from kedit_methods_locate.hparams import (
    AlphaEditHyperParams,
    EmmetHyperParams,
    MemitHyperParams,
    PmetHyperParams,
    SpreadHyperParams,
    layer_by_depth,
    layers_by_depth,
)

CLASSES = (MemitHyperParams, EmmetHyperParams, PmetHyperParams, AlphaEditHyperParams)


def shape(layers: int, architecture: str = "Anything", width: int = 64) -> ModelShape:
    return ModelShape(architecture=architecture, num_layers=layers, hidden_size=width)


@pytest.mark.parametrize("cls", CLASSES)
def test_defaults_of_the_sheets(cls: type[Any]) -> None:
    h = cls(layers=(1,))
    assert (h.fact_token, h.kl_position, h.early_stop_loss) == ("subject_last", "subject", 0.05)
    assert (h.v_lr, h.v_weight_decay, h.clamp_norm_factor, h.mom2_adjustment) == (0.5, 0.5, 0.75, True)
    assert (h.context_lengths, h.key_weights, h.v_loss_layer) == (((10, 5),), "grouped", None)
    assert h.spread == ("sqrt" if cls is PmetHyperParams else "linear")
    assert h.kl_factor == (1.0 if cls is PmetHyperParams else 0.0625)
    if cls is PmetHyperParams:
        assert (h.nll_loss_factor, h.kl_stop, h.projections) == (1.0, 0.01, ("mlp_out",))
    if cls is AlphaEditHyperParams:
        assert (h.nullspace_threshold, h.nullspace_energy, h.l2, h.l2_unit) == (0.02, 0.02, 10.0, "absolute")
    if cls is EmmetHyperParams:
        assert (h.emmet_lambda, h.update_norm_lambda, h.ridge_for_one, h.exact) == (0.1, 0.0, False, False)


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [(1, (0,)), (2, (0,)), (3, (0,)), (4, (1,)), (8, (1, 2)), (12, (1, 2, 3)), (32, (3, 4, 5, 6, 7)),
     (100, (14, 15, 16, 17, 18))],
)  # fmt: skip
def test_layers_by_depth(layers: int, wanted: tuple[int, ...]) -> None:
    assert layers_by_depth(shape(layers)) == wanted


@pytest.mark.parametrize("architecture", ["Anything", "GPT2LMHeadModel", "GPTNeoXForCausalLM"])
@pytest.mark.parametrize("cls", CLASSES)
def test_any_depth_gives_layers_that_are_there(cls: type[SpreadHyperParams], architecture: str) -> None:
    """Consecutive, ascending, at most five, ROME's among them, and a class that can be built of them."""
    for count in range(1, 101):
        made = resolve(cls, shape(count, architecture)).hparams
        layers = made.layers
        assert list(layers) == list(range(layers[0], layers[-1] + 1))
        assert layers[0] >= 0 and layers[-1] < count and len(layers) <= 5
        assert layer_by_depth(shape(count, architecture)) in layers
        assert len(layers) == 1 or cls is not EmmetHyperParams


def test_weights_follow_the_width() -> None:
    """Twice the MLP's inner size, taken as four times the hidden size; EMMET's alpha is ten times that, its epsilon a
    tenth."""
    memit, emmet = (resolve(cls, shape(4, width=100)).hparams for cls in (MemitHyperParams, EmmetHyperParams))
    assert memit.mom2_update_weight == 800
    assert emmet.mom2_update_weight * emmet.emmet_lambda == pytest.approx(800)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"fact_token": "last"}, "fact_token 'last' is no token of a subject"),
        ({"fact_token": "middle"}, "fact_token"),
        ({"layers": []}, "layers must be one or more layers"),
        ({"layers": [2, 1]}, "ascending"),
        ({"layers": [1, 1]}, "each once"),
        ({"layers": [-1, 0]}, "from 0 or more"),
        ({"layer": 1}, "layer"),
        ({"spread": "even"}, "spread"),
        ({"key_weights": "bare"}, "key_weights"),
        ({"v_loss_layer": -1}, "v_loss_layer"),
        ({"clamp_norm_factor": 0}, "clamp_norm_factor"),
        ({"context_templates": ["a {}"]}, "bare"),
    ],
    ids=str,
)
def test_what_is_refused(cls: type[SpreadHyperParams], wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(HyperParamsError, match=why):
        cls.from_dict({"layers": [1], **wrong})


@pytest.mark.parametrize("cls", [MemitHyperParams, PmetHyperParams, EmmetHyperParams])
def test_a_weight_is_above_zero(cls: type[SpreadHyperParams]) -> None:
    for weight in (0, -1.0):
        with pytest.raises(HyperParamsError, match="mom2_update_weight"):
            cls.from_dict({"layers": [1], "mom2_update_weight": weight})
