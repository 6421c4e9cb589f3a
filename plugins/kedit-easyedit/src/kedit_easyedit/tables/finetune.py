"""FT (FT-L and FT-M) and LoRA (and AdaLoRA)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kedit_easyedit.modules import module
from kedit_easyedit.rules import Rule, Table, dropped, into, only, to
from kedit_easyedit.tables.common import COMMON, TEMPLATES, bound

_OBJECTIVES = {"prompt_last": "ft_l", "target_new": "ft_m"}
_KINDS = {"lora": "lora", "adalora": "adalora"}


def _part(value: Any) -> Mapping[str, Any]:
    found = module(value)
    if found.part in ("gate", "up"):
        raise ValueError("kedit trains both input projections of a gated MLP, not one: set part to mlp_in")
    stack = {} if found.stack is None else {"stack": found.stack}
    return {"part": found.part, "train_bias": not found.weight, **stack}


def _chooses(key: str, known: Mapping[str, str]) -> Rule:
    told = ", ".join(f"{theirs} is {ours}" for theirs, ours in known.items())
    return only(*known, why=f"it chooses the method: {told}", otherwise=f"kedit has no such {key}; {told}")


_TRAINING: Mapping[str, Rule] = {
    **COMMON,
    "layers": to("layers"),
    "num_steps": to("num_steps"),
    "lr": to("lr"),
    "weight_decay": to("weight_decay"),
    "batch_size": to("batch_size"),
    "kl_factor": only(0, 0.0, why="the original does not read it"),
}

_ADALORA: Mapping[str, Rule] = {
    "rank": dropped("AdaLoRA has init_rank 12 and does not read it"),
    "lora_type": into(
        lambda value: {"parity": True}, "as EasyEdit runs AdaLoRA: rank 12, and no rank is ever taken away"
    ),
}

TABLES: tuple[Table, ...] = (
    Table(
        name="FT",
        method=lambda settings: _OBJECTIVES.get(str(settings.get("objective_optimization")), "ft_m"),
        methods=("ft_l", "ft_m", "ft_bf"),
        rules={
            **_TRAINING,
            **TEMPLATES,
            "rewrite_module_tmp": into(_part),
            "norm_constraint": to("norm_constraint", bound),
            "objective_optimization": _chooses("objective", _OBJECTIVES),
        },
        remarks=(
            "EasyEdit pads on the left and reads the last prompt token as if on the right, so with batch_size above "
            "1 all "
            "but the longest prompt are trained at a wrong token; kedit's results differ there",
            "EasyEdit trains the BOS token as part of the target where the tokenizer adds one (Llama); kedit does not",
            "ft_bf is the same training breadth-first, the stronger baseline: --method ft_bf",
        ),
    ),
    Table(
        name="LoRA",
        method=lambda settings: _KINDS.get(str(settings.get("lora_type")), "lora"),
        methods=("lora", "adalora"),
        rules={
            **_TRAINING,
            "lora_type": _chooses("type", _KINDS),
            "target_modules": to("targets"),
            "rank": to("rank"),
            "lora_alpha": to("alpha"),
            "lora_dropout": to("dropout"),
            "norm_constraint": only(False, None, why="the original does not read it"),
        },
        variants={"adalora": _ADALORA},
        remarks=(
            "EasyEdit's loss is the mean over all target tokens of a batch (loss token); kedit takes each request's "
            "mean "
            "first. With batch_size 1 they are the same",
            "EasyEdit leaves the adapters' dropout on while it measures; kedit does not",
        ),
    ),
)
