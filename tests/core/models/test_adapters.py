"""Every built-in adapter against the model class it speaks of."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForSequenceClassification, LlamaModel

from kedit_core.errors import InputError, UnsupportedModelError
from kedit_core.models import AdapterRegistry, ModelView
from kedit_core.models.builtin import ADAPTERS
from kedit_core.testing.tiny import FAMILIES, tiny_model

# What the tiny models do not show by default.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "opt_350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "gpt_neox_sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "mistral_sliding": ("mistral", {"sliding_window": 3}),
    "gemma3_capped": ("gemma3", {"final_logit_softcapping": 2.0}),
}
NORM_BEHIND_MLP = {"gemma2", "gemma3", "gemma3_capped", "opt_350m"}


def viewed(variant: str, dtype: torch.dtype = torch.float32) -> ModelView:
    family, over = VARIANTS[variant]
    return AdapterRegistry(ADAPTERS).for_model(tiny_model(family, dtype=dtype, **over))


def forward(view: ModelView) -> Tensor:
    inputs = {"input_ids": torch.arange(7, 19).view(2, 6)}
    if view.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.arange(7, 13).view(2, 3)
    with torch.no_grad():
        logits: Tensor = view.model(**inputs).logits
    return logits


def first(value: Any) -> Tensor:
    return value[0] if isinstance(value, tuple) else value


class Seen:
    """First inputs and outputs of some modules in one forward."""

    def __init__(self, view: ModelView, **modules: nn.Module) -> None:
        self.input: dict[str, Tensor] = {}
        self.output: dict[str, Tensor] = {}

        def note(name: str) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                self.input[name] = first(args or tuple(kwargs.values())).clone()
                self.output[name] = first(output).clone()

            return hook

        hooks = [module.register_forward_hook(note(name), with_kwargs=True) for name, module in modules.items()]
        self.logits = forward(view)
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_head_gives_the_models_own_logits(variant: str, dtype: torch.dtype) -> None:
    view = viewed(variant, dtype)
    seen = Seen(view, last=view.head_blocks[-1])
    with torch.no_grad():
        assert torch.allclose(view.head(seen.output["last"]), seen.logits, atol=1e-5, rtol=1e-5)
        one = view.head(seen.output["last"][0, 1])
    assert one.shape == (view.vocab_size,)
    assert torch.allclose(one, seen.logits[0, 1], atol=0.1 if dtype is torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_do_what_they_are_named_for(variant: str) -> None:
    view = viewed(variant)
    for layer in range(view.num_layers):
        seen = Seen(
            view,
            block=view.block(layer),
            mlp=view.mlp(layer),
            mlp_in=view.mlp_in(layer)[0],
            mlp_out=view.mlp_out(layer),
            attn=view.attn(layer),
            attn_out=view.attn_out(layer),
            embeddings=view.embeddings,
        )
        stream = (2, 6, view.hidden_size)
        assert seen.input["block"].shape == seen.output["block"].shape == seen.output["attn"].shape == stream
        assert torch.equal(seen.output["mlp"], seen.output["mlp_out"])
        assert torch.equal(seen.output["attn"], seen.output["attn_out"])
        assert seen.input["mlp_out"].shape[-1] == view.mlp_size(layer) == 80
        assert seen.input["mlp_in"].shape[-1] == view.hidden_size
        key, module = seen.input["mlp_out"], view.mlp_out(layer)
        value = key @ view.down_weight(layer).T + (0 if module.bias is None else module.bias)
        assert torch.allclose(value, seen.output["mlp"], atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_block_delta_is_told_as_it_is(variant: str) -> None:
    view = viewed(variant)
    assert view.block_delta_ok == (variant not in NORM_BEHIND_MLP)
    vector = torch.randn(view.hidden_size, generator=torch.Generator().manual_seed(3))
    for layer in range(view.num_layers):
        before = Seen(view, block=view.block(layer)).output["block"]
        handle = view.mlp(layer).register_forward_hook(lambda module, args, output: output + vector)
        after = Seen(view, block=view.block(layer)).output["block"]
        handle.remove()
        assert torch.allclose(after, before + vector, atol=1e-4) == view.block_delta_ok
        assert (view.norm_after_mlp(layer) is None) == view.block_delta_ok


@pytest.mark.parametrize("variant", VARIANTS)
def test_parallel_blocks_do_not_feed_attention_to_the_mlp(variant: str) -> None:
    view = viewed(variant)
    assert view.parallel == (variant in {"gptj", "gpt_neox"})
    before = Seen(view, mlp=view.mlp_in(0)[0]).input["mlp"]
    handle = view.attn_out(0).register_forward_hook(lambda module, args, output: output + 1)
    after = Seen(view, mlp=view.mlp_in(0)[0]).input["mlp"]
    handle.remove()
    # A constant shift is nothing to a layer norm in front of the MLP, so it must not be constant.
    handle = view.attn_out(0).register_forward_hook(lambda module, args, output: output * 3)
    scaled = Seen(view, mlp=view.mlp_in(0)[0]).input["mlp"]
    handle.remove()
    assert (torch.equal(before, after) and torch.equal(before, scaled)) == view.parallel


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_and_names(family: str) -> None:
    view = viewed(family)
    config = view.model.config
    assert view.num_layers == getattr(config, view.adapter.num_layers)
    assert view.hidden_size == getattr(config, view.adapter.hidden_size) == 32
    assert view.vocab_size == config.vocab_size
    assert view.max_positions == (None if family.startswith("t5") else 128)
    assert view.edit_stack == ("encoder" if family.startswith("t5") else "decoder")
    assert view.cache_argument in inspect.signature(view.head_blocks[0].forward).parameters
    for layer in range(view.num_layers):
        name = view.mlp_out_weight(layer)
        assert dict(view.model.named_parameters())[name] is view.mlp_out(layer).weight
        assert view.name_of(view.mlp_out(layer)) == name.removesuffix(".weight")
        assert view.down_weight(layer).shape == (32, 80)
        assert view.down_weight(layer).data_ptr() == view.mlp_out(layer).weight.data_ptr()


def test_shape_is_what_presets_match_on() -> None:
    shape = viewed("gpt2").shape
    assert (shape.architecture, shape.num_layers, shape.hidden_size) == ("GPT2LMHeadModel", 3, 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_position_embeddings_are_run(family: str) -> None:
    view = viewed(family)
    assert (view.position_embeddings is not None) == (family in {"gpt2", "gpt_neo", "opt"})
    if view.position_embeddings is not None:
        assert Seen(view, table=view.position_embeddings).output["table"].shape[-1] == view.hidden_size


def test_layout_is_told_by_class_and_not_by_shape() -> None:
    square = AdapterRegistry(ADAPTERS).for_model(tiny_model("gpt2", n_inner=32))
    assert square.layout(square.mlp_out_weight(0)) == "in_out"
    assert torch.equal(square.down_weight(0), square.mlp_out(0).weight.T)
    assert square.layout("transformer.wte.weight") == "out_in"
    assert square.layout("transformer.h.0.mlp.c_proj.bias") == "as_stored"
    assert square.layout("transformer.h.0.ln_1.weight") == "as_stored"
    linear = AdapterRegistry(ADAPTERS).for_model(tiny_model("llama", intermediate_size=32))
    assert linear.layout(linear.mlp_out_weight(0)) == "out_in"


def test_tied_parameters_know_their_names() -> None:
    tied, untied = viewed("gpt2"), viewed("llama")
    assert tied.aliases("transformer.wte.weight") == ("lm_head.weight",)
    assert tied.first_name("lm_head.weight") == "transformer.wte.weight"
    assert untied.aliases("lm_head.weight") == ()
    t5 = viewed("t5")
    assert t5.first_name("lm_head.weight") == "shared.weight" and len(t5.aliases("shared.weight")) == 3


def test_what_is_not_there_is_refused() -> None:
    view = viewed("llama")
    for layer in (-1, 3):
        with pytest.raises(InputError, match="blocks 0 to 2"):
            view.mlp(layer)
        with pytest.raises(InputError, match="blocks 0 to 2"):
            view.mlp_out_weight(layer)
    for name in ("model.layers.9.mlp.down_proj.weight", "model.norm", "nothing"):
        with pytest.raises(InputError, match="has no parameter"):
            view.layout(name)
    with pytest.raises(InputError, match="no module of this"):
        view.name_of(nn.Linear(2, 2))


def test_a_class_without_the_head_is_refused_by_what_it_lacks() -> None:
    config = tiny_model("llama").config
    config.architectures = ["LlamaForCausalLM"]
    for kind in (LlamaModel, LlamaForSequenceClassification):
        with pytest.raises(UnsupportedModelError, match=r"lacks .*language-model head"):
            AdapterRegistry(ADAPTERS).for_model(kind(config))


def test_head_lets_gradients_through() -> None:
    view = viewed("gemma2")
    hidden = torch.randn(2, 32, requires_grad=True)
    view.head(hidden).logsumexp(-1).sum().backward()
    assert hidden.grad is not None and hidden.grad.abs().sum() > 0


# ------------------------------------------------------------------ wrapped models
class PeftLike(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = model

    def get_base_model(self) -> nn.Module:
        return self.base_model


class LoraLike(nn.Module):
    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer

    def forward(self, hidden: Tensor) -> Tensor:
        return self.base_layer(hidden)  # type: ignore[no-any-return]


def test_a_peft_wrapper_is_looked_through() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj = LoraLike(model.model.layers[1].mlp.down_proj)
    view = AdapterRegistry(ADAPTERS).for_model(PeftLike(model))
    assert view.model is model
    assert view.mlp_out_weight(1) == "model.layers.1.mlp.down_proj.base_layer.weight"
    assert view.down_weight(1).shape == (32, 80) and view.mlp_size(1) == 80
    assert view.layout(view.mlp_out_weight(1)) == "out_in"


def test_other_wrappers_and_things_are_refused() -> None:
    registry = AdapterRegistry(ADAPTERS)
    with pytest.raises(UnsupportedModelError, match=r"LlamaForCausalLM inside of it \(model.module\)"):
        registry.for_model(nn.DataParallel(tiny_model("llama")))
    with pytest.raises(UnsupportedModelError, match="not a transformers model"):
        registry.for_model(nn.Linear(2, 2))


def test_packed_weights_are_not_read_as_matrices() -> None:
    view = viewed("llama")
    view.mlp_out(0).weight = nn.Parameter(torch.zeros(1280, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match="packed"):
        view.down_weight(0)
    assert view.mlp_size(0) == 80


def test_adapters_import_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "import kedit_core.models.builtin as b; from kedit_core.models import AdapterRegistry\n"
        "assert 'T5ForConditionalGeneration' in AdapterRegistry(b.plugin.register_adapters()).architectures"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
