"""Structural discovery: the same as the built-in adapters say, and a refusal that says why where it cannot."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
import transformers
from torch import nn

from kedit_core.errors import UnsupportedModelError
from kedit_core.models import AdapterRegistry, ModelAdapter, ModelView, discover
from kedit_core.models.adapter import holds
from kedit_core.models.builtin import ADAPTERS
from kedit_core.testing.tiny import FAMILIES, tiny_model

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def untold(architecture: str, config: str, **over: Any) -> Any:
    """A small model of a class that has no adapter."""
    settings = getattr(transformers, config)(**{**SIZES, **over})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, architecture)(settings)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def places(adapter: ModelAdapter, view: ModelView) -> dict[str, Any]:
    """What an adapter says of one model, with what depends on the config worked out."""
    config = view.text_config
    said = attrs.asdict(adapter, recurse=False)
    for name in ("architectures", "only_if", "distribution", "norm_after_mlp_if"):
        said.pop(name)
    for name in ("parallel", "mlp_rescaled", "rescale_hidden"):
        said[name] = holds(said[name], config)
    for name in ("logit_multiplier", "logit_divisor", "logit_softcap"):
        said[name] = said[name] if said[name] and getattr(config, said[name]) is not None else None
    said["norm_after_mlp"] = said["norm_after_mlp"] if view.norm_after_mlp(0) is not None else None
    said["final_norm"] = tuple(view.name_of(module) for module in view.final_norm)
    return said


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_discovery_finds_what_the_adapters_say(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype=dtype)
    found, known = AdapterRegistry().for_model(model), AdapterRegistry(ADAPTERS).for_model(model)
    assert places(found.adapter, found) == places(known.adapter, known)


@pytest.mark.parametrize(
    ("family", "over"),
    [
        ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("gpt2", {"n_inner": 32}),
        ("llama", {"num_hidden_layers": 1, "intermediate_size": 32}),
    ],
)
def test_discovery_finds_variants(family: str, over: dict[str, Any]) -> None:
    model = tiny_model(family, **over)
    found, known = AdapterRegistry().for_model(model), AdapterRegistry(ADAPTERS).for_model(model)
    assert places(found.adapter, found) == places(known.adapter, known)


@pytest.mark.parametrize(
    ("architecture", "config", "over", "expected"),
    [
        ("StableLmForCausalLM", "StableLmConfig", {}, {"mlp": "model.layers.{}.mlp"}),
        ("StableLmForCausalLM", "StableLmConfig", {"use_parallel_residual": True}, {"parallel": True}),
        ("Olmo2ForCausalLM", "Olmo2Config", {}, {"norm_after_mlp": "model.layers.{}.post_feedforward_layernorm"}),
        ("CohereForCausalLM", "CohereConfig", {}, {"logit_multiplier": "logit_scale", "parallel": True}),
        ("GraniteForCausalLM", "GraniteConfig", {"residual_multiplier": 0.3, "logits_scaling": 4.0},
         {"logit_divisor": "logits_scaling", "mlp_rescaled": True}),
        ("Starcoder2ForCausalLM", "Starcoder2Config", {}, {"mlp_in": ("model.layers.{}.mlp.c_fc",)}),
        # Bloom's MLP adds the residual itself, so what it gives is not the MLP's output.
        ("BloomForCausalLM", "BloomConfig", {"n_layer": 3, "n_head": 4},
         {"mlp": "transformer.h.{}.mlp.dense_4h_to_h", "cache_argument": "layer_past"}),
        # Falcon adds to the MLP's output in place.
        ("FalconForCausalLM", "FalconConfig", {"new_decoder_architecture": True},
         {"parallel": True, "attn_out": "transformer.h.{}.self_attention.dense"}),
        ("Glm4ForCausalLM", "Glm4Config", {"head_dim": 8}, {"norm_after_mlp": "model.layers.{}.post_mlp_layernorm"}),
        ("BartForConditionalGeneration", "BartConfig",
         {"d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_ffn_dim": 80, "decoder_ffn_dim": 80,
          "encoder_attention_heads": 4, "decoder_attention_heads": 4},
         {"block": "model.encoder.layers.{}", "decoder_block": "model.decoder.layers.{}", "final_norm": (),
          "norm_after_mlp": "model.encoder.layers.{}.final_layer_norm"}),
    ],
)  # fmt: skip
def test_discovery_does_architectures_nobody_registered(
    architecture: str, config: str, over: dict[str, Any], expected: dict[str, Any]
) -> None:
    view = AdapterRegistry(ADAPTERS).for_model(untold(architecture, config, **over))
    assert view.adapter.architectures == (architecture,)
    assert {name: getattr(view.adapter, name) for name in expected} == expected
    plain = not {"norm_after_mlp", "mlp_rescaled"} & set(expected)
    assert view.block_delta_ok == plain
    assert view.mlp_out(1).weight is dict(view.model.named_parameters())[view.mlp_out_weight(1)]


@pytest.mark.parametrize(
    ("architecture", "config", "over", "reason"),
    [
        ("BertForMaskedLM", "BertConfig", {}, "it reads both ways"),
        ("MambaForCausalLM", "MambaConfig", {}, "no linear map outside of backbone.layers.1.mixer"),
        ("MixtralForCausalLM", "MixtralConfig", {"num_local_experts": 4}, "mixtures of experts"),
        ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", {"num_experts": 4, "moe_intermediate_size": 16}, "are not those of"),
        ("JambaForCausalLM", "JambaConfig", {"num_hidden_layers": 8, "num_experts": 2}, "are of several classes"),
        ("LlamaForSequenceClassification", "LlamaConfig", {}, "language-model head: NOT FOUND"),
        ("ViTForImageClassification", "ViTConfig", {}, "token embeddings: NOT FOUND"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(
    architecture: str, config: str, over: dict[str, Any], reason: str
) -> None:
    model = untold(architecture, config, **over)
    with pytest.raises(UnsupportedModelError) as caught:
        AdapterRegistry(ADAPTERS).for_model(model)
    message = str(caught.value)
    assert architecture in message and reason in message
    assert "Looked for:" in message and "register_adapters" in message
    assert "LlamaForCausalLM" in caught.value.__notes__[0]


def test_bert_as_a_decoder_is_refused_by_its_attention() -> None:
    with pytest.raises(UnsupportedModelError, match="output projection: NOT FOUND"):
        discover(untold("BertLMHeadModel", "BertConfig", is_decoder=True))


@pytest.mark.parametrize("architecture", ["OlmoForCausalLM", "MambaForCausalLM"])
def test_discovery_leaves_the_model_as_it_was(architecture: str) -> None:
    model = untold(architecture, architecture.replace("ForCausalLM", "Config"))
    model.train()
    next(model.children()).eval()
    modes = {name: module.training for name, module in model.named_modules()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    try:
        discover(model)
    except UnsupportedModelError:
        assert architecture.startswith("Mamba")
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_forward_that_fails_is_told_with_what_was_found() -> None:
    model = untold("OlmoForCausalLM", "OlmoConfig")

    def fail(*args: Any) -> None:
        raise RuntimeError("no such kernel")

    model.model.norm.register_forward_pre_hook(fail)
    with pytest.raises(UnsupportedModelError, match="RuntimeError: no such kernel") as caught:
        discover(model)
    assert "model.layers, 3 of OlmoDecoderLayer" in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_model_without_weights_cannot_be_verified() -> None:
    with torch.device("meta"):
        model = transformers.OlmoForCausalLM(transformers.OlmoConfig(**SIZES))
    with pytest.raises(UnsupportedModelError, match="meta device"):
        discover(model)


def test_registered_adapters_bind_without_weights() -> None:
    config = tiny_model("gpt2").config
    with torch.device("meta"):
        model: nn.Module = transformers.GPT2LMHeadModel(config)
    view = AdapterRegistry(ADAPTERS).for_model(model)
    assert (view.mlp_size(0), view.layout(view.mlp_out_weight(0))) == (80, "in_out")
