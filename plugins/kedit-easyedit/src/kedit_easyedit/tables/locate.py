"""ROME, R-ROME, MEMIT, EMMET, PMET, AlphaEdit and KN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kedit_easyedit.modules import module
from kedit_easyedit.rules import Rule, Table, dropped, into, one_of, only, single, to
from kedit_easyedit.tables.common import COMMON, TEMPLATES

_STATISTICS: Mapping[str, Rule] = {
    "mom2_n_samples": to("mom2_documents"),
    "mom2_dataset": dropped("the corpus is given to `kedit stats`, or with --corpus"),
    "mom2_dtype": dropped("statistics are summed and solved in the precision that they need"),
    "stats_dir": dropped("statistics are found by what they are of; give another folder with --stats"),
}

_SEARCH: Mapping[str, Rule] = {
    **COMMON,
    **TEMPLATES,
    **_STATISTICS,
    "fact_token": to("fact_token"),
    "v_num_grad_steps": to("v_num_grad_steps"),
    "v_lr": to("v_lr"),
    "v_weight_decay": to("v_weight_decay"),
    "clamp_norm_factor": to("clamp_norm_factor"),
    "kl_factor": to("kl_factor"),
    "fp16": only(False, why="say --dtype", otherwise="say --dtype float16 when you edit"),
}

_ROME: Mapping[str, Rule] = {
    **_SEARCH,
    "layers": to("layer", single),
    "v_loss_layer": dropped("it has no effect on ROME's loss, there or here"),
    "mom2_adjustment": to("mom2_adjustment"),
    "context_template_length_params": to("context_lengths"),
}

_OFF = (
    "EasyEdit's files have mom2_adjustment false, which is not ROME as published: with true (kedit's own default) "
    "other "
    "facts are disturbed less, and statistics are needed (`kedit stats`)"
)
_SPACE = (
    "EasyEdit's ROME puts a space before every target, also before one that has a space; kedit one where there is none"
)
_FIRST = "EasyEdit's ROME edits the first request of a call only; kedit edits all of them, one after the other"

_SPREAD: Mapping[str, Rule] = {
    **_SEARCH,
    "layers": to("layers"),
    "layer_selection": only("all", why="all layers are edited", otherwise="kedit edits all the layers that are named"),
    "v_loss_layer": to("v_loss_layer"),
    "mom2_adjustment": only(
        True,
        why="the original does not read it; the statistic is always used",
        otherwise="the original does not read it; the statistic is always used, as there (kedit's setting of this name "
        "would take it away)",
    ),
    "mom2_update_weight": to("mom2_update_weight"),
}

_TEMPLATES = (
    "contexts are sampled with kedit's own seed and kept in the patch; EasyEdit samples them anew in every process"
)


def _projections(value: Any) -> Mapping[str, Any]:
    parts = [module(name).part for name in value] if isinstance(value, list) else []
    if not parts or not set(parts) <= {"mlp_out", "attn_out"}:
        raise ValueError("kedit's PMET edits the MLP's last projection, the attention's, or both")
    return {"projections": list(dict.fromkeys(parts))}


def _r_rome(settings: Mapping[str, Any]) -> str:
    return "rome" if settings.get("original_implementation") is True else "r_rome"


_PROMPT_KEYS = to("variant", one_of({True: "p_rome", False: "r_rome"}), "which keys the update is made of")

TABLES: tuple[Table, ...] = (
    Table(name="ROME", method="rome", methods=("rome", "r_rome"), rules=_ROME, remarks=(_OFF, _SPACE, _FIRST)),
    Table(
        name="R-ROME",
        method=_r_rome,
        methods=("r_rome", "rome"),
        rules={
            **_ROME,
            "enable_prompt_keys": _PROMPT_KEYS,
            "enable_random_prefix_keys": dropped("it is the contrary of enable_prompt_keys"),
            "original_implementation": dropped("it chooses the method: rome when true, else r_rome"),
        },
        variants={"rome": {"enable_prompt_keys": dropped("original_implementation true overrides it")}},
        remarks=(_OFF, _FIRST),
    ),
    Table(name="MEMIT", method="memit", methods=("memit",), rules=_SPREAD, remarks=(_TEMPLATES,)),
    Table(
        name="EMMET",
        method="emmet",
        methods=("emmet",),
        rules={**_SPREAD, "update_norm_lambda": to("update_norm_lambda"), "emmet_lambda": to("emmet_lambda")},
        remarks=(
            _TEMPLATES,
            "EasyEdit adds emmet_lambda for a single fact too, which the authors do not: set ridge_for_one for that",
        ),
    ),
    Table(
        name="PMET",
        method="pmet",
        methods=("pmet",),
        rules={**_SPREAD, "nll_loss_factor": to("nll_loss_factor"), "rewrite_module_tmps": into(_projections)},
        remarks=(
            _TEMPLATES,
            "EasyEdit pads on the left for PMET while it looks tokens up as if on the right, so rows shorter than the "
            "longest are edited at wrong tokens; kedit's results differ from its",
            "EasyEdit has mom2_update_weight 15000 for GPT-J where the authors have 6000",
        ),
    ),
    Table(
        name="AlphaEdit",
        method="alphaedit",
        methods=("alphaedit",),
        rules={
            **_SPREAD,
            "mom2_update_weight": dropped("the original does not read it; kedit's setting of this name adds a term"),
            "nullspace_threshold": into(lambda value: {"nullspace_rule": "absolute", "nullspace_threshold": value}),
            "L2": into(lambda value: {"l2": value, "l2_unit": "absolute"}),
            "P_loc": dropped("projections follow from statistics, and are found by what they are of"),
        },
        remarks=(
            _TEMPLATES,
            "keys of earlier edits are protected as long as these are on the model; EasyEdit keeps those of edits that "
            "were taken back, too",
            "a threshold on eigenvalues suits the models it was published for; for others leave nullspace_rule and l2 "
            "out, and kedit takes a share of the trace",
        ),
    ),
    Table(
        name="KN",
        method="kn",
        methods=("kn",),
        rules={
            **COMMON,
            "lr_scale": dropped("the original does not read it"),
            "n_toks": dropped("the original does not read it"),
            "refine": to("prompts", one_of({True: "rephrase", False: "bare"})),
            "batch_size": dropped("how many points of the integral are computed at once follows from the memory"),
            "steps": to("steps"),
            "adaptive_threshold": to("threshold"),
            "p": to("refine_share"),
        },
        remarks=(
            "EasyEdit lays the points of the integral from 0 to 1 inclusive (grid inclusive), so with steps 1 it "
            "reads the "
            "gradient at zero alone; kedit's 20 steps are the paper's",
            "EasyEdit scales the gate or what goes into the activation (neuron pre); the paper what comes out of it "
            "(post)",
            "EasyEdit weighs the two embeddings -2 and +1 for each token (lambda_rule parity_causal); kedit -2 and +2",
        ),
    ),
)
