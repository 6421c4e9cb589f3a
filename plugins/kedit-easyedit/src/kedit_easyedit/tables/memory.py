"""GRACE, WISE, MELO and IKE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kedit_easyedit.modules import layer_and_part, one, parts_and_layers
from kedit_easyedit.rules import Rule, Table, dropped, into, one_of, only, to
from kedit_easyedit.tables.common import COMMON, FROM_ADAPTER, bound

_ENCODER = "all-MiniLM-L6-v2"


def _encoder(value: Any) -> str:
    name = str(value)
    if name.rstrip("/").rpartition("/")[2] == _ENCODER:
        return f"sentence-transformers/{_ENCODER}"
    if name.startswith((".", "/", "~")):
        raise ValueError("it is a folder; give it when you edit: --with encoder=FOLDER")
    return name


def _margins(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError("act_margin is a list of three: alpha, beta, gamma")
    return dict(zip(("alpha", "beta", "gamma"), value, strict=True))


def _scope(value: Any) -> Mapping[str, Any]:
    found = one(value)
    if found.part in ("gate", "up"):
        raise ValueError("it is one of the two input projections of a gated MLP; kedit reads mlp_out or attn_out there")
    return {"scope_layer": found.layer, "scope_part": found.part}


def _adapted(value: Any) -> Mapping[str, Any]:
    settings = parts_and_layers(value)
    if "mlp_gate" in settings["parts"]:
        raise ValueError("kedit gives both input projections of a gated MLP an adapter, not one")
    return settings


def _wise(value: Any) -> Mapping[str, Any]:
    settings = layer_and_part(value)
    if settings["part"] not in ("mlp_out", "mlp_in"):
        raise ValueError("kedit's WISE copies a matrix of the MLP")
    return settings


_UNREAD = dropped("the original does not read it")
_DISTANCE = only("euc", why="distances are Euclidean", otherwise="kedit's distances are Euclidean")
_NO_PERTURBATION = only(
    "sgd", why="values are trained by gradient steps", otherwise="kedit trains values by gradient only"
)
_OF_SERAC = dropped("it is of SERAC's classifier, whose settings this file carries along; MELO does not read it")

_GRACE: Mapping[str, Rule] = {
    **COMMON,
    "inner_params": into(layer_and_part),
    "edit_lr": to("edit_lr"),
    "n_iter": to("n_iter"),
    "eps": to("eps0"),
    "dist_fn": _DISTANCE,
    "val_init": to("value_init"),
    "val_train": _NO_PERTURBATION,
    "val_reg": _UNREAD,
    "reg": _UNREAD,
    "replacement": to("replacement"),
    "eps_expand": to(
        "expand",
        one_of({"coverage": "coverage", "moving_average": "moving_average", "moving_avg": "moving_average"}),
    ),
    "num_pert": dropped("it is of training by perturbation, which is not chosen"),
    "dropout": _UNREAD,
}

_WISE: Mapping[str, Rule] = {
    **COMMON,
    "inner_params": into(_wise),
    "edit_lr": to("lr"),
    "n_iter": to("n_iter"),
    "objective_optimization": only("only_label", why="the target's tokens are trained, not the prompt's"),
    "mask_ratio": to("rho"),
    "act_margin": into(_margins),
    "alpha": to("alpha"),
    "beta": to("beta"),
    "gamma": to("gamma"),
    "act_ratio": to("act_ratio"),
    "merge_freq": to("merge_freq"),
    "save_freq": to("save_freq"),
    "retrieve": to("retrieve"),
    "replay": to("replay"),
    "merge_alg": to("merge_alg"),
    "norm_constraint": to("norm_constraint", bound),
    "weights": to("weights"),
    "densities": to("density"),
    "save_path": dropped("the patch is what is saved: -o, result.patch.save"),
    "load_path": dropped("a saved edit is put on with --patch, or editor.apply"),
}

_MELO: Mapping[str, Rule] = {
    **COMMON,
    "task": only("hall", why="answers are generated"),
    "lora_task_type": FROM_ADAPTER,
    "check_dir": dropped("the patch is what is saved"),
    "grace.name": _UNREAD,
    "grace.num_iter": to("num_iter"),
    "grace.init_radius": to("radius"),
    "grace.dist_fn": _DISTANCE,
    "grace.val_init": dropped("blocks start as LoRA does"),
    "grace.val_train": _NO_PERTURBATION,
    "grace.val_reg": _UNREAD,
    "grace.reg": _UNREAD,
    "grace.replacement": dropped("a prompt's block answers for all its tokens"),
    "grace.expand_mode": only(
        "moving_avg", "moving_average", why="clusters grow as published", otherwise="kedit's clusters grow as published"
    ),
    "grace.num_pert": _UNREAD,
    "grace.key_id": only(-1, why="the prompt's last token tells prompts apart"),
    "grace.num_edit_per_block": to("edits_per_block"),
    "grace.num_block": to("blocks"),
    "grace.num_rank_per_block": to("rank"),
    "grace.metric_period": dropped("results are measured by `kedit evaluate`"),
    "grace.edit_lr": to("lr"),
    "model.name": dropped("give the model to the command"),
    "model.class_name": FROM_ADAPTER,
    "model.tokenizer_class": FROM_ADAPTER,
    "model.tokenizer_name": dropped("the tokenizer is that of the model"),
    "model.fan_in_fan_out": FROM_ADAPTER,
    "model.target_modules": into(_adapted),
    "model.pt": dropped("give the model to the command"),
    "model.grace_layer": into(_scope),
    "lora.cls_name": _OF_SERAC,
    "lora.cls_class": _OF_SERAC,
    "lora.supervised": _OF_SERAC,
    "lora.cos": _OF_SERAC,
    "lora.freeze": _OF_SERAC,
    "lora.square": _OF_SERAC,
    "lora.bound_embeds": _OF_SERAC,
    "lora.use_all_negatives": _OF_SERAC,
    "lora.freeze_lora": _OF_SERAC,
    "lora.dist_heads": _OF_SERAC,
    "lora.cross_attend": _OF_SERAC,
    "lora.soft_weighting": _OF_SERAC,
    "lora.checkpoint_grad": _OF_SERAC,
    "lora.lora_r": dropped("the rank of all blocks together follows from blocks and rank"),
    "lora.lora_alpha": dropped("the factor is the number of blocks as published (lora_factor blocks), or 1"),
    "lora.lora_dropout": only(0, 0.0, why="there is no dropout", otherwise="kedit's MELO has no dropout"),
}

_IKE: Mapping[str, Rule] = {
    **COMMON,
    "k": into(lambda value: {"k": value} if value else {"mode": "ice"}),
    "sentence_model_name": to("encoder", _encoder),
    "results_dir": dropped("demonstrations are given with --with demonstrations=FILE, and no folder is written"),
    "use_icl_examples": to("mode", one_of({True: "easyedit", False: "ice"})),
}

TABLES: tuple[Table, ...] = (
    Table(
        name="GRACE",
        method="grace",
        methods=("grace",),
        rules=_GRACE,
        remarks=(
            "EasyEdit asks the codebook anew at every token that is written, and holds labels against the wrong "
            "keys from "
            "the second edit on; kedit decides once for each prompt (compat easyedit does as EasyEdit)",
            "a radius is in units of the projection's input, and the layer matters as much: 1.0 is often too small "
            "or large",
        ),
    ),
    Table(
        name="WISE",
        method="wise",
        methods=("wise",),
        rules=_WISE,
        remarks=(
            "sequences of edits with EasyEdit's WISE were seen to lose the earlier ones; kedit keeps them",
            "the irrelevant text of an edit (loc_prompts) is one of the request's locality probes, or one that you "
            "give",
        ),
    ),
    Table(
        name="MELO",
        method="melo",
        methods=("melo",),
        rules=_MELO,
        remarks=(
            "EasyEdit edits only the first request of a list, and keeps its edits when the next case is measured; "
            "kedit "
            "edits all and takes them off",
        ),
    ),
    Table(
        name="IKE",
        method="ike",
        methods=("ike", "ike_context"),
        rules=_IKE,
        implied={"use_icl_examples": {"mode": "easyedit"}},
        remarks=(
            "mode easyedit shows the nearest demonstrations of whatever kind, as EasyEdit does; mode ike is the "
            "published "
            "one (32 demonstrations, 1 copy to 3 updates to 4 retained)",
            "the edit is a patch here: it is saved, put on and taken off, and every prompt goes through it",
        ),
    ),
)
