"""Settings and presets of lora and adalora: the sheet's defaults and table, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from kedit_core.errors import HyperParamsError
from kedit_core.hparams import ModelShape, resolve
from kedit_core.plugins import Catalogue
from kedit_methods_finetune.hparams import AdaLoraHyperParams, LoraHyperParams

CLASSES: dict[str, Any] = {"lora": LoraHyperParams, "adalora": AdaLoraHyperParams}
ATTENTION, MLP = ("q", "v"), ("mlp_in", "mlp_out")

# architecture, layers, width -> targets, steps (specification: fine-tuning, section 6)
TABLE = {
    ("GPT2LMHeadModel", 48, 1600): (ATTENTION, 30),
    ("GPTJForCausalLM", 28, 4096): (MLP, 50),
    ("LlamaForCausalLM", 32, 4096): (ATTENTION, 70),
    ("LlamaForCausalLM", 28, 3072): (ATTENTION, 70),
    ("Qwen2ForCausalLM", 28, 3584): (ATTENTION, 60),
    ("GPT2LMHeadModel", 24, 1024): (ATTENTION, 50),
    ("MistralForCausalLM", 32, 4096): (ATTENTION, 50),
}


def resolved(method: str, shape: tuple[str, int, int]) -> tuple[Any, dict[str, str]]:
    wanted = ModelShape(architecture=shape[0], num_layers=shape[1], hidden_size=shape[2])
    made = resolve(CLASSES[method], wanted, presets=Catalogue.installed().method(method).presets)
    return made.hparams, dict(made.sources)


@pytest.mark.parametrize("method", CLASSES)
@pytest.mark.parametrize("shape", TABLE, ids=str)
def test_published_settings(method: str, shape: tuple[str, int, int]) -> None:
    hparams, sources = resolved(method, shape)
    assert (hparams.targets, hparams.num_steps) == TABLE[shape]
    assert (hparams.lr, hparams.alpha, hparams.dropout, hparams.batch_size) == (5e-3, 32, 0.1, 1)
    assert (hparams.layers, hparams.weight_decay, hparams.stop_loss, hparams.append_eos) == ((), 0, 0, False)
    assert sources["num_steps"].startswith("preset")


@pytest.mark.parametrize("method", CLASSES)
@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_factworld_has_presets(method: str, architecture: str) -> None:
    _, sources = resolved(method, (architecture, 6, 192))
    assert sources["lr"].startswith("preset factworld")


@pytest.mark.parametrize("method", CLASSES)
def test_other_models_get_the_defaults(method: str) -> None:
    hparams, sources = resolved(method, ("GPTNeoForCausalLM", 24, 2048))
    assert hparams == CLASSES[method]()
    assert (hparams.targets, hparams.num_steps, hparams.loss) == (ATTENTION, 50, "request")
    assert set(sources.values()) == {"default"}


def test_defaults_of_the_sheet() -> None:
    lora, ada = LoraHyperParams(), AdaLoraHyperParams()
    assert lora.rank == 8
    assert (lora.loss, ada.loss) == ("request", "request")
    assert (ada.init_rank, ada.target_rank, ada.orthogonality, ada.parity) == (12, 8, 0.5, False)
    assert (ada.tinit, ada.tfinal, ada.delta_t, ada.beta1, ada.beta2) == (0, 0, 1, 0.85, 0.85)
    assert "rank" not in ada.to_dict(), "a setting that would be ignored"


@pytest.mark.parametrize(
    ("method", "wrong", "told"),
    [
        ("lora", {"rank": 0}, "rank"),
        ("lora", {"dropout": 1.0}, "dropout"),
        ("lora", {"dropout": -0.1}, "dropout"),
        ("lora", {"num_steps": 0}, "num_steps"),
        ("lora", {"batch_size": 0}, "batch_size"),
        ("lora", {"lr": 0}, "lr"),
        ("lora", {"alpha": 0}, "alpha"),
        ("lora", {"loss": "sum"}, "loss"),
        ("lora", {"targets": []}, "at least one name"),
        ("lora", {"targets": ["q", ""]}, "no empty one"),
        ("lora", {"layers": [2, 1]}, "ascending"),
        ("lora", {"layers": [-1]}, "from 0"),
        ("lora", {"layers": [1, 1]}, "each once"),
        ("lora", {"stop_loss": -1}, "stop_loss"),
        ("lora", {"init_rank": 12}, "init_rank"),
        ("adalora", {"rank": 8}, "'rank' is no setting here"),
        ("adalora", {"target_rank": 12}, "target_rank must be below init_rank"),
        ("adalora", {"stop_loss": 0.1}, "parity only"),
        ("adalora", {"tinit": 30, "tfinal": 20}, "no step for the allocation"),
        ("adalora", {"beta1": 1.0}, "beta1"),
        ("adalora", {"parity": "maybe", "loss": "token"}, "parity"),
    ],
    ids=str,
)
def test_what_is_refused(method: str, wrong: dict[str, object], told: str) -> None:
    with pytest.raises(HyperParamsError, match=told):
        CLASSES[method].from_dict(wrong)


def test_with_parity_the_schedule_is_not_checked() -> None:
    settings = AdaLoraHyperParams(parity=True, target_rank=12, tinit=50, stop_loss=0.1)
    assert AdaLoraHyperParams.from_dict(settings.to_dict()) == settings


def test_parity_weighs_tokens_as_published_comparisons_did_unless_told_otherwise() -> None:
    assert AdaLoraHyperParams(parity=True).loss == "token"
    assert AdaLoraHyperParams(parity=True, loss="request").loss == "request"
    assert AdaLoraHyperParams(loss="token").loss == "token"
    assert AdaLoraHyperParams.from_dict({"parity": True}).to_dict()["loss"] == "token"
