"""adapter_config.json: what it says of how an adapter's factors are put together, and what makes it no plain LoRA.

Settings that kedit does not know are refused when they are set, for what they mean nobody here can tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from kedit_core.errors import InputError
from kedit_peft.patterns import Patterns

_MOST_PATTERNS = 1024

# settings that only training reads, or that say what the tensors' own names say
_NO_MATTER = (
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
    *("exclude_modules", "fan_in_fan_out", "layers_pattern", "layers_to_transform", "target_modules"),
    *("corda_config", "eva_config", "loftq_config", "lora_ga_config", "velora_config", "runtime_config"),
    *("ensure_weight_tying", "lora_dropout", "megatron_core", "qalora_group_size"),
)
_READ = ("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights")
_REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA scales each row of the edited weight, which is no low-rank change",
    "modules_to_save": "whole modules are saved beside the LoRA factors",
    "trainable_token_indices": "single tokens of the embedding are changed",
    "layer_replication": "layers of the model are repeated",
    "lora_bias": "the factors have biases",
    "target_parameters": "parameters are changed that belong to no Linear layer, such as fused experts",
    "alora_invocation_tokens": "an activated LoRA acts after some tokens only",
    "use_qalora": "QALoRA pools the inputs",
    "use_bdlora": "its factors are block-diagonal",
    "kasa_config": "KaSA changes the base weights",
    "monteclora_config": "its factors are drawn anew",
    "arrow_config": "it routes between adapters",
    "megatron_config": "it is for a model that Megatron has split",
}
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
ADVICE = "merge it with PEFT (merge_and_unload), save that, and take the difference with kedit patch diff"


@frozen(kw_only=True)
class AdapterSettings:
    """What adapter_config.json says of how the factors are put together."""

    r: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, float]
    alphas: Patterns
    base_name: str | None

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> AdapterSettings:
        """Check settings; InputError for what is malformed, unknown, or more than low-rank changes of weights."""
        if (kind := config.get("peft_type")) != "LORA":
            raise InputError(f"its peft_type is {short(kind)} and only LORA adds low-rank changes; {ADVICE}")
        for key, reason in _REFUSED.items():
            if config.get(key):
                raise InputError(f"{reason} ({key}); {ADVICE}")
        if (bias := config.get("bias", "none")) != "none":
            raise InputError(f"it changes biases (bias is {short(bias)}), which is no low-rank change; {ADVICE}")
        init = config.get("init_lora_weights", True)
        if not any(init is known or (isinstance(known, str) and init == known) for known in _INITS):
            raise InputError(
                f"init_lora_weights is {short(init)}, and such training changes the base weights as well; save it "
                "with path_initial_model_for_weight_conversion, which makes it a plain LoRA"
            )
        for key, value in config.items():
            if value and key not in _NO_MATTER and key not in _READ and key not in _REFUSED:
                raise InputError(f"it has the setting {short(key)}, which kedit does not know; {ADVICE}")
        rslora = config.get("use_rslora") or False
        if not isinstance(rslora, bool):
            raise InputError(f"use_rslora is {short(rslora)}; it is true or false")
        base = config.get("base_model_name_or_path")
        return cls(
            r=int(_number(config.get("r", 8), "r", whole=True)),
            alpha=_number(config.get("lora_alpha", 8), "lora_alpha"),
            rslora=rslora,
            ranks=_by_pattern(config, "rank_pattern", whole=True),
            alphas=Patterns.of(_by_pattern(config, "alpha_pattern")),
            base_name=base if isinstance(base, str) else None,
        )

    def scale(self, module: str, rank: int) -> float:
        """``alpha / r``, or ``alpha / sqrt(r)`` of a rank-stabilised LoRA (Kalajdzievski 2023, arXiv 2312.03732)."""
        alpha = self.alphas.value(module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def _by_pattern(config: Mapping[str, Any], key: str, whole: bool = False) -> dict[str, float]:
    value = config.get(key) or {}
    if not isinstance(value, dict) or len(value) > _MOST_PATTERNS:
        raise InputError(f"{key} is {short(value)}; it is an object of at most {_MOST_PATTERNS} numbers by pattern")
    return {pattern: _number(number, f"{key}.{pattern[:80]}", whole) for pattern, number in value.items()}


def _number(value: Any, what: str, whole: bool = False) -> float:
    kinds = (int,) if whole else (int, float)
    if type(value) not in kinds or not abs(value) <= 1e9 or (whole and value < 1):
        raise InputError(
            f"{what} is {short(value)}; it is a {'whole ' if whole else ''}number{' from 1' if whole else ''}"
        )
    return value if whole else float(value)


def short(value: object) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
