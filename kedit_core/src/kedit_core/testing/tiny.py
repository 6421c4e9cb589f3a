"""Tiny random models of every family kedit knows, built in code in a few milliseconds; no downloads.

Sizes are small and all different from one another, so that a swapped axis or a wrong stack raises instead of passing:
hidden 32, MLP inner 80, four heads of 8, and two KV heads where the family has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import transformers
from attrs import frozen
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from kedit_core.testing.tiny_tokenizers import KINDS, tiny_tokenizer

__all__ = ["FAMILIES", "KINDS", "tiny", "tiny_model", "tiny_tokenizer"]

_HIDDEN = 32
_INNER = 80
_HEADS = 4
_POSITIONS = 128
# Large enough for peaked answers: with the usual 0.02 all logits of a model this narrow are nearly equal.
_STD = 0.3


@frozen
class _Family:
    """How a family's tiny model is made: names of its transformers classes, its kind of tokenizer, its sizes.

    ``own_head``: the head gets its own weights although the config says tied, as in the T5 1.1 checkpoints.
    """

    config: str
    model: str
    tokenizer: str
    settings: Mapping[str, Any]
    own_head: bool = False


def _modern(layers: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": _HIDDEN,
        "intermediate_size": _INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": _POSITIONS,
        "initializer_range": _STD,
        **more,
    }


def _gpt(layers: int, **more: Any) -> dict[str, Any]:
    return {
        "n_embd": _HIDDEN,
        "n_inner": _INNER,
        "n_layer": layers,
        "n_head": _HEADS,
        "n_positions": _POSITIONS,
        "initializer_range": _STD,
        **more,
    }


def _t5(**more: Any) -> dict[str, Any]:
    return {
        "d_model": _HIDDEN,
        "d_ff": _INNER,
        "d_kv": 8,
        "num_heads": _HEADS,
        "num_layers": 4,
        "num_decoder_layers": 3,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16,
        "decoder_start_token_id": 0,
        **more,
    }


_GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}
_GEMMA_LAYERS = ["sliding_attention", "full_attention"] * 2

_FAMILIES: Mapping[str, _Family] = MappingProxyType(
    {
        "gpt2": _Family("GPT2Config", "GPT2LMHeadModel", "byte_bpe", _gpt(3)),
        "gptj": _Family("GPTJConfig", "GPTJForCausalLM", "byte_bpe", _gpt(3, rotary_dim=4)),
        "gpt_neo": _Family(
            "GPTNeoConfig",
            "GPTNeoForCausalLM",
            "byte_bpe",
            {
                "hidden_size": _HIDDEN,
                "intermediate_size": _INNER,
                "num_layers": 4,
                "num_heads": _HEADS,
                "max_position_embeddings": _POSITIONS,
                "attention_types": [[["global", "local"], 2]],
                "window_size": 8,
                "initializer_range": _STD,
            },
        ),
        "gpt_neox": _Family(
            "GPTNeoXConfig",
            "GPTNeoXForCausalLM",
            "byte_bpe",
            {key: value for key, value in _modern(3).items() if key != "num_key_value_heads"},
        ),
        "opt": _Family(
            "OPTConfig",
            "OPTForCausalLM",
            "byte_bpe_bos",
            {
                "hidden_size": _HIDDEN,
                "ffn_dim": _INNER,
                "num_hidden_layers": 3,
                "num_attention_heads": _HEADS,
                "max_position_embeddings": _POSITIONS,
                "init_std": _STD,
            },
        ),
        "llama": _Family("LlamaConfig", "LlamaForCausalLM", "sentencepiece_bos", _modern(3)),
        "mistral": _Family("MistralConfig", "MistralForCausalLM", "sentencepiece_bos", _modern(3)),
        "qwen2": _Family("Qwen2Config", "Qwen2ForCausalLM", "qwen", _modern(3, tie_word_embeddings=True)),
        "qwen3": _Family("Qwen3Config", "Qwen3ForCausalLM", "qwen", _modern(3, head_dim=16)),
        "phi3": _Family(
            "Phi3Config",
            "Phi3ForCausalLM",
            "sentencepiece_bos",
            _modern(3, original_max_position_embeddings=_POSITIONS),
        ),
        "gemma2": _Family(
            "Gemma2Config",
            "Gemma2ForCausalLM",
            "sentencepiece_bos",
            _modern(4, **_GEMMA, layer_types=_GEMMA_LAYERS, final_logit_softcapping=8.0),
        ),
        "gemma3": _Family(
            "Gemma3TextConfig",
            "Gemma3ForCausalLM",
            "sentencepiece_bos",
            _modern(4, **_GEMMA, layer_types=_GEMMA_LAYERS),
        ),
        "t5": _Family("T5Config", "T5ForConditionalGeneration", "t5", _t5()),
        "t5_gated": _Family(
            "T5Config",
            "T5ForConditionalGeneration",
            "t5",
            _t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
            own_head=True,
        ),
    }
)

FAMILIES: tuple[str, ...] = tuple(_FAMILIES)


def _family(name: str) -> _Family:
    if name not in _FAMILIES:
        raise KeyError(f"no tiny model is of family {name!r}; there are {', '.join(FAMILIES)}")
    return _FAMILIES[name]


def tiny_model(
    family: str,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **over: Any,
) -> PreTrainedModel:
    """A random model of one of :data:`FAMILIES`, in eval mode on the CPU; the global random state stays as it was.

    Weights are larger than usual and norms and biases are random too, so that answers are peaked and every parameter
    matters. gpt_neo has local layers that see 8 positions, gemma2 and gemma3 sliding layers that see 16; mistral sees
    its whole input unless ``sliding_window=`` is given. t5 has four encoder and three decoder blocks.

    Args:
        seed: of the weights; equal seeds give equal weights.
        tokenizer: sizes the vocabulary and gives the special ids; the family's own kind when None.
        over: settings of the family's config that replace the tiny ones, e.g. ``num_hidden_layers=2``.

    Raises:
        KeyError: an unknown family.
    """
    spec = _family(family)
    tokenizer = tiny_tokenizer(spec.tokenizer) if tokenizer is None else tokenizer
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = getattr(transformers, spec.config)(**{"vocab_size": len(tokenizer), **special, **spec.settings, **over})
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the accelerators as well
        model = getattr(transformers, spec.model)(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
            if spec.own_head:
                model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * _STD)
    return model.to(dtype).eval()


def tiny(
    family: str, seed: int = 0, dtype: torch.dtype = torch.float32, kind: str | None = None, **over: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A tiny model (see :func:`tiny_model`) with its tokenizer, of the family's own kind or of ``kind``."""
    tokenizer = tiny_tokenizer(kind or _family(family).tokenizer)
    return tiny_model(family, seed, dtype, tokenizer, **over), tokenizer
