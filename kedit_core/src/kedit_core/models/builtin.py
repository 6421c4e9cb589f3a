"""The adapters kedit comes with, checked against the classes of transformers 5. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kedit_core.contract import hookimpl
from kedit_core.models.adapter import ModelAdapter, When


def _llama_like(*architectures: str, **more: Any) -> ModelAdapter:
    """RMS norms in front, gated MLP, no biases to speak of: the shape most models have today."""
    layer = "model.layers.{}"
    return ModelAdapter(
        **{
            "architectures": architectures,
            "block": layer,
            "mlp": f"{layer}.mlp",
            "mlp_in": (f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj"),
            "mlp_out": f"{layer}.mlp.down_proj",
            "attn": f"{layer}.self_attn",
            "attn_out": f"{layer}.self_attn.o_proj",
            "embeddings": "model.embed_tokens",
            "final_norm": ("model.norm",),
            **more,
        }
    )


GPT2 = ModelAdapter(
    architectures=("GPT2LMHeadModel",),
    block="transformer.h.{}",
    mlp="transformer.h.{}.mlp",
    mlp_in=("transformer.h.{}.mlp.c_fc",),
    mlp_out="transformer.h.{}.mlp.c_proj",
    attn="transformer.h.{}.attn",
    attn_out="transformer.h.{}.attn.c_proj",
    embeddings="transformer.wte",
    position_embeddings="transformer.wpe",
    final_norm=("transformer.ln_f",),
)

GPT_J = ModelAdapter(
    architectures=("GPTJForCausalLM",),
    block="transformer.h.{}",
    mlp="transformer.h.{}.mlp",
    mlp_in=("transformer.h.{}.mlp.fc_in",),
    mlp_out="transformer.h.{}.mlp.fc_out",
    attn="transformer.h.{}.attn",
    attn_out="transformer.h.{}.attn.out_proj",
    embeddings="transformer.wte",
    final_norm=("transformer.ln_f",),
    parallel=True,
    cache_argument="layer_past",
)

GPT_NEO = ModelAdapter(
    architectures=("GPTNeoForCausalLM",),
    block="transformer.h.{}",
    mlp="transformer.h.{}.mlp",
    mlp_in=("transformer.h.{}.mlp.c_fc",),
    mlp_out="transformer.h.{}.mlp.c_proj",
    attn="transformer.h.{}.attn.attention",
    attn_out="transformer.h.{}.attn.attention.out_proj",
    embeddings="transformer.wte",
    position_embeddings="transformer.wpe",
    final_norm=("transformer.ln_f",),
    cache_argument="layer_past",
)

GPT_NEOX = ModelAdapter(
    architectures=("GPTNeoXForCausalLM",),
    block="gpt_neox.layers.{}",
    mlp="gpt_neox.layers.{}.mlp",
    mlp_in=("gpt_neox.layers.{}.mlp.dense_h_to_4h",),
    mlp_out="gpt_neox.layers.{}.mlp.dense_4h_to_h",
    attn="gpt_neox.layers.{}.attention",
    attn_out="gpt_neox.layers.{}.attention.dense",
    embeddings="gpt_neox.embed_in",
    final_norm=("gpt_neox.final_layer_norm",),
    parallel=When("use_parallel_residual"),
    cache_argument="layer_past",
)

# No MLP module: fc1 and fc2 lie in the block, and run on [batch * seq, hidden]. OPT-350m has its norms behind, and
# projections around the stack in place of the final norm.
OPT = ModelAdapter(
    architectures=("OPTForCausalLM",),
    block="model.decoder.layers.{}",
    mlp="model.decoder.layers.{}.fc2",
    mlp_in=("model.decoder.layers.{}.fc1",),
    mlp_out="model.decoder.layers.{}.fc2",
    attn="model.decoder.layers.{}.self_attn",
    attn_out="model.decoder.layers.{}.self_attn.out_proj",
    embeddings="model.decoder.embed_tokens",
    position_embeddings="model.decoder.embed_positions",
    final_norm=("model.decoder.final_layer_norm", "model.decoder.project_out"),
    norm_after_mlp="model.decoder.layers.{}.final_layer_norm",
    norm_after_mlp_if=When("do_layer_norm_before", False),
)

LLAMA = _llama_like("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")

PHI3 = _llama_like("Phi3ForCausalLM", mlp_in=("model.layers.{}.mlp.gate_up_proj",))

GEMMA = _llama_like(
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    norm_after_mlp="model.layers.{}.post_feedforward_layernorm",
    logit_softcap="final_logit_softcapping",
)


def _t5(*mlp_in: str) -> dict[str, Any]:
    block = "encoder.block.{}"
    return {
        "block": block,
        "mlp": f"{block}.layer.1.DenseReluDense",
        "mlp_in": tuple(f"{block}.layer.1.DenseReluDense.{name}" for name in mlp_in),
        "mlp_out": f"{block}.layer.1.DenseReluDense.wo",
        "attn": f"{block}.layer.0.SelfAttention",
        "attn_out": f"{block}.layer.0.SelfAttention.o",
        "embeddings": "encoder.embed_tokens",
        "final_norm": ("decoder.final_layer_norm",),
        "decoder_block": "decoder.block.{}",
        "rescale_hidden": When("scale_decoder_outputs"),
    }


T5 = ModelAdapter(architectures=("T5ForConditionalGeneration",), only_if=When("is_gated_act", False), **_t5("wi"))

T5_GATED = ModelAdapter(
    architectures=("T5ForConditionalGeneration",), only_if=When("is_gated_act", True), **_t5("wi_0", "wi_1")
)

ADAPTERS = (GPT2, GPT_J, GPT_NEO, GPT_NEOX, OPT, LLAMA, PHI3, GEMMA, T5, T5_GATED)


class CoreAdapters:
    """The plugin that registers :data:`ADAPTERS`."""

    @hookimpl
    def register_adapters(self) -> Sequence[ModelAdapter]:
        return ADAPTERS


plugin = CoreAdapters()
