"""Keys that (nearly) all settings files of EasyEdit have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kedit_easyedit.rules import Rule, dropped, only

FROM_ADAPTER = dropped("kedit's adapter of the architecture knows where this is")

COMMON: Mapping[str, Rule] = {
    "alg_name": dropped("it is the method: -m"),
    "alg": dropped("it is the method: -m"),
    "model_name": dropped("give the model to the command: kedit edit MODEL"),
    "device": dropped("say --device"),
    "model_parallel": only(
        False,
        why="say --device, or load the model with a device_map",
        otherwise="load the model with a device_map and give it to Editor(model, tokenizer, ...)",
    ),
    "use_chat_template": only(
        False,
        why="prompts are taken as they are",
        otherwise="prompts are taken as they are: write them in the chat's form",
    ),
    "max_length": dropped("nothing is cut: prompts and answers are read whole"),
    "batch_size": dropped("how many facts are edited together is said to the command: --mode batch, --batch-size"),
}

TEMPLATES: Mapping[str, Rule] = {
    "rewrite_module_tmp": FROM_ADAPTER,
    "layer_module_tmp": FROM_ADAPTER,
    "mlp_module_tmp": FROM_ADAPTER,
    "attn_module_tmp": FROM_ADAPTER,
    "ln_f_module": FROM_ADAPTER,
    "lm_head_module": FROM_ADAPTER,
}

MODEL_CLASSES: Mapping[str, Rule] = {
    "model_class": FROM_ADAPTER,
    "tokenizer_class": FROM_ADAPTER,
    "tokenizer_name": dropped("the tokenizer is that of the model"),
}


def bound(value: Any) -> Any:
    """For :func:`~kedit_easyedit.rules.to`: EasyEdit takes a bound on weights only from a float."""
    return value if isinstance(value, float) else None
