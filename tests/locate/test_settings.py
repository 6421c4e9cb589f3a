"""Settings and presets: the sheet's defaults, the published tables, and layers in proportion to the depth."""

from __future__ import annotations

import pytest
from torch_blocked import run_without_torch

from kedit_core.errors import HyperParamsError
from kedit_core.hparams import ModelShape, resolve
from kedit_core.plugins import Catalogue
from kedit_methods_locate.hparams import RomeHyperParams, RRomeHyperParams

# architecture, layers, width -> layer, steps, decay, clamp (specification: ROME, section 6)
TABLE = {
    ("GPT2LMHeadModel", 24, 1024): (8, 20, 0.5, 3),
    ("GPT2LMHeadModel", 36, 1280): (12, 20, 0.5, 4),
    ("GPT2LMHeadModel", 48, 1600): (17, 20, 0.5, 4),
    ("GPTJForCausalLM", 28, 4096): (5, 20, 0.5, 4),
    ("GPTNeoXForCausalLM", 44, 6144): (15, 20, 0.5, 4),
    ("LlamaForCausalLM", 32, 4096): (5, 25, 1e-3, 4),
    ("LlamaForCausalLM", 28, 3072): (5, 25, 1e-3, 4),
    ("MistralForCausalLM", 32, 4096): (5, 25, 1e-3, 4),
    ("Qwen2ForCausalLM", 28, 3584): (5, 25, 1e-3, 4),
}


def resolved(method: str, shape: tuple[str, int, int]) -> tuple[RomeHyperParams, dict[str, str], tuple[str, ...]]:
    info = Catalogue.installed().method(method)
    cls = RomeHyperParams if method == "rome" else RRomeHyperParams
    wanted = ModelShape(architecture=shape[0], num_layers=shape[1], hidden_size=shape[2])
    made = resolve(cls, wanted, presets=info.presets)
    return made.hparams, dict(made.sources), made.notes


@pytest.mark.parametrize("method", ["rome", "r_rome"])
@pytest.mark.parametrize("shape", TABLE, ids=str)
def test_published_settings(method: str, shape: tuple[str, int, int]) -> None:
    hparams, sources, notes = resolved(method, shape)
    found = (hparams.layer, hparams.v_num_grad_steps, hparams.v_weight_decay, hparams.clamp_norm_factor)
    assert found == TABLE[shape]
    assert (hparams.v_lr, hparams.kl_factor) == (0.5, 0.0625)
    assert hparams.mom2_adjustment, "the statistic is on everywhere"
    assert sources["layer"].startswith("preset")
    assert notes


@pytest.mark.parametrize("method", ["rome", "r_rome"])
@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_factworld_has_presets(method: str, architecture: str) -> None:
    _, sources, _ = resolved(method, (architecture, 6, 192))
    assert sources["layer"].startswith("preset factworld")


@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        (("GPT2LMHeadModel", 12, 768), 4),
        (("GPT2LMHeadModel", 3, 32), 1),
        (("GPTNeoXForCausalLM", 16, 2048), 5),
        (("LlamaForCausalLM", 16, 2048), 2),
        (("LlamaForCausalLM", 80, 8192), 12),
        (("T5ForConditionalGeneration", 12, 768), 2),
        (("Anything", 1, 8), 0),
    ],
)
def test_without_a_preset_the_layer_follows_the_depth(shape: tuple[str, int, int], layer: int) -> None:
    hparams, sources, notes = resolved("rome", shape)
    assert hparams.layer == layer
    assert sources["layer"] == "depth"
    assert any("proportion to its depth" in note for note in notes)


def test_defaults_of_the_sheet() -> None:
    h = RomeHyperParams(layer=0)
    assert (h.fact_token, h.kl_position, h.early_stop_loss) == ("subject_last", "subject", 0.05)
    assert (h.v_num_grad_steps, h.v_lr, h.kl_factor) == (20, 0.5, 0.0625)
    assert (h.v_weight_decay, h.clamp_norm_factor, h.mom2_adjustment) == (0.5, 4.0, True)
    assert (h.context_lengths, h.mom2_documents, h.mom2_skip_first_token) == (((5, 10), (10, 10)), 100_000, False)
    assert (h.mom2_ridge, h.fast) == (0.0, True)
    assert RRomeHyperParams(layer=0).variant == "r_rome"


@pytest.mark.parametrize(
    "wrong",
    [{"layer": -1}, {"v_num_grad_steps": 0}, {"v_lr": 0}, {"clamp_norm_factor": 0}, {"fact_token": "middle"},
     {"kl_position": "first"}, {"layers": 3}, {"mom2_ridge": -1e-3}, {"context_templates": ["a {}"]}],
    ids=str,
)  # fmt: skip
def test_what_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(HyperParamsError):
        RomeHyperParams.from_dict({"layer": 1, **wrong})


def test_describing_and_helping_import_no_torch() -> None:
    code = (
        "import kedit_methods_locate.methods, kedit_methods_locate.hparams\n"
        "from kedit_methods_locate.commands.stats import stats\n"
        "from click.testing import CliRunner\n"
        "print(CliRunner().invoke(stats, ['--help']).output)"
    )
    assert "--layers" in run_without_torch(code)
