"""MEND, KE, MALMEN and SERAC: training their editors, and editing with one.

Nearly all of these files is about training. A file with an ``archive`` is for editing with the editor in it, which
holds all of this itself: then nothing is left to set.
"""

from __future__ import annotations

from collections.abc import Mapping

from kedit_easyedit.modules import parts_and_layers
from kedit_easyedit.rules import Rule, Table, dropped, into, one_of, only, to
from kedit_easyedit.tables.common import COMMON, FROM_ADAPTER, MODEL_CLASSES

_STOP = {
    "loss/total_edit_val": "loss/total",
    "loss/total_edit": "loss/total",
    "edit/acc_val": "edit/acc",
    "ES_val": "edit/acc",
}
_EPOCHS = only(
    None, why="training is counted in iterations", otherwise="set iterations: records times epochs, by batch_size"
)
_ADAM = only("Adam", why="the optimiser is Adam", otherwise="kedit trains with Adam")
_NO_DROPOUT = only(0, 0.0, why="the model's dropout is off", otherwise="the model's dropout is off in kedit's training")
_HALF = only(False, None, why="say --dtype", otherwise="say --dtype bfloat16; the editor itself is trained in float32")
_TOLD = dropped("what is told follows from the terminal")
_FOLDER = dropped("the editor goes to -o")

_LOOP: Mapping[str, Rule] = {
    **COMMON,
    **MODEL_CLASSES,
    "archive": only(
        None, why="there is none before training", otherwise="kedit cannot read it: train the editor (`kedit train`)"
    ),
    "seed": dropped("say --seed"),
    "debug": _TOLD,
    "dropout": _NO_DROPOUT,
    "train_base": only(
        False, why="the model stays as it is", otherwise="kedit never trains the model beside the editor"
    ),
    "cbase": dropped("it is the weight of training the model beside, which is off"),
    "no_grad_layers": only(None, why="gradients reach as far as they must"),
    "results_dir": _FOLDER,
    "model_save_pt": to("save_interval"),
    "silent": _TOLD,
    "verbose": _TOLD,
    "log_interval": to("log_interval"),
    "eval_log_interval": _TOLD,
    "final_eval": dropped("the best editor is measured by `kedit evaluate`"),
    "val_interval": to("val_interval"),
    "early_stop_patience": to("patience"),
    "early_stop_key": to("early_stop_key", one_of(_STOP)),
    "eval_only": only(False, why="it is trained", otherwise="an editor is measured by `kedit evaluate`"),
    "half": _HALF,
    "save": dropped("the editor is always saved"),
    "val_batch_size": dropped("how many records are validated together follows from the method"),
    "val_steps": to("val_items"),
    "max_epochs": _EPOCHS,
    "max_iters": to("iterations"),
}

_BY_GRADIENT: Mapping[str, Rule] = {
    **_LOOP,
    "inner_params": into(parts_and_layers),
    "lr": to("lr"),
    "cedit": to("c_edit"),
    "cloc": to("c_loc"),
    "accumulate_bs": to("accumulate"),
    "opt": _ADAM,
    "grad_clip": to("clip"),
}

_EARLY = "EasyEdit's trainer never stops early, and announces its last editor as the best; kedit keeps the best"
_OUTER = (
    "EasyEdit asks the edited model the edit's own prompt (outer original); kedit a rephrase, as published, so "
    "training "
    "records need rephrase prompts"
)

_TRANSFORM = "these four are one setting in kedit, transform, which is combined unless one of them says otherwise"

_MEND: Mapping[str, Rule] = {
    **_BY_GRADIENT,
    "batch_size": into(lambda value: {"batch_size": value, "n_edits": value}, "edits that are made as one update"),
    "edit_lr": to("edit_lr"),
    "lr_lr": to("lr_lr"),
    "max_output_length": dropped("how long answers may be is said when they are measured"),
    "lr_scale": dropped("an update's factor is said when facts are edited (strength)"),
    "n_hidden": to("n_hidden"),
    "hidden_dim": only(None, why="hidden layers are of the rank", otherwise="kedit's hidden layers are of the rank"),
    "init": to("init"),
    "norm": to("norm"),
    "one_sided": into(lambda value: {"transform": "smaller"} if value else {}, _TRANSFORM),
    "combine": into(lambda value: {} if value else {"transform": "separate"}, _TRANSFORM),
    "x_only": into(lambda value: {"transform": "inputs"} if value else {}, _TRANSFORM),
    "delta_only": into(lambda value: {"transform": "gradients"} if value else {}, _TRANSFORM),
    "act": only("relu", why="hidden layers have ReLU", otherwise="kedit's hidden layers have ReLU"),
    "rank": to("rank"),
    "mlp_class": only("IDMLP", why="it is MEND's net", otherwise="kedit has MEND's own net only"),
    "shared": to("shared"),
}

_KE: Mapping[str, Rule] = {
    **_BY_GRADIENT,
    "inner_params": into(lambda value: {"editable": "chosen", **parts_and_layers(value)}),
    "batch_size": to("batch_size"),
    "cedit": into(lambda value: {"loss": "mend", "c_edit": value}, "MEND's loop, which these weights are of"),
    "edit_lr": dropped("KE's gates scale its updates"),
    "lr_lr": dropped("KE's gates scale its updates"),
    "lr_scale": dropped("KE's gates scale its updates"),
}

_MALMEN: Mapping[str, Rule] = {
    **_LOOP,
    "inner_params": into(parts_and_layers),
    "rank": to("rank"),
    "n_blocks": to("n_blocks"),
    "n_edits": to("batch_size"),
    "batch_size": to("micro_batch"),
    "editor_batch_size": to("chunk"),
    "lr": to("eta"),
    "meta_lr": to("lr"),
    "loc_coef": to("c_loc"),
    "max_grad_norm": to("clip"),
    "token": to("token"),
}

_SERAC: Mapping[str, Rule] = {
    **_LOOP,
    "inner_params": only([], why="SERAC changes no weight"),
    "small_name": dropped("name it to the training: --option counterfactual=MODEL"),
    "cls_name": dropped("name it to the training: --option classifier=MODEL"),
    "cls_class": FROM_ADAPTER,
    "lr": to("lr"),
    "edit_lr": dropped("nothing is edited by gradient"),
    "lr_lr": dropped("nothing is edited by gradient"),
    "cedit": to("c_edit"),
    "cloc": to("c_loc"),
    "supervised": to("objective", one_of({True: "supervised", False: "easyedit"})),
    "soft_weighting": only(
        False,
        why="a prompt goes to one of the models",
        otherwise="a patch routes a whole prompt to one model; a mixture of two models' answers is no route",
    ),
    "checkpoint_grad": dropped("memory is looked after"),
    "cross_attend": to("form", one_of({True: "cross_attend", False: "embedding"})),
    "cos": to("measure", one_of({True: "cos", False: "l2"})),
    "freeze": only(
        None, why="all blocks are trained", otherwise="say how many of the last blocks are trained: trainable_blocks"
    ),
    "square": to("square"),
    "bound_embeds": to("bounded"),
    "use_all_negatives": to("use_all_negatives"),
    "freeze_cntr": to("freeze_cntr"),
    "dist_heads": to("heads"),
    "lora": only(None, why="the models are trained whole", otherwise="kedit trains the two small models whole"),
    "edit_bs": to("batch_size"),
    "batch_size": dropped("edits of a micro-batch are edit_bs"),
    "log_errors": _TOLD,
    "unlikelihood": dropped("it is of the published loss for yes-or-no answers; kedit's answers are text"),
    "exact_match": dropped("how answers are judged is said when they are measured: --protocol"),
    "accumulate_bs": to("accumulate"),
    "opt": _ADAM,
    "grad_clip": to("clip"),
}

_KEPT = "the editor holds this itself; to train one, convert the settings of training"


def _editing(training: Mapping[str, Rule]) -> Mapping[str, Rule]:
    """The same file used for editing: everything is in the editor."""
    kept: dict[str, Rule] = dict.fromkeys(training, dropped(_KEPT))
    kept |= {key: rule for key, rule in COMMON.items() if key in training}
    kept["archive"] = only(
        None,
        why="give the editor when you edit: --editor FOLDER",
        otherwise="kedit cannot read EasyEdit's checkpoints (they are pickled): train an editor with `kedit train`, "
        "and "
        "give it when you edit: --editor FOLDER",
    )
    return kept


def _two(name: str, method: str, rules: Mapping[str, Rule], remarks: tuple[str, ...]) -> tuple[Table, Table]:
    """The table for training, and the one for editing."""
    return (
        Table(name=name, method=method, methods=(method,), rules=rules, remarks=(*remarks, _EARLY), training=True),
        Table(name=name, method=method, methods=(method,), rules=_editing(rules)),
    )


TABLES: tuple[Table, ...] = (
    *_two(
        "MEND",
        "mend",
        _MEND,
        (
            _OUTER,
            "EasyEdit lays labels against the row's last tokens, so with tokenizers that put BOS first it trains "
            "BOS at the "
            "prompt's end (compat easyedit does so too, with outer original)",
        ),
    ),
    *_two(
        "KE",
        "ke",
        _KE,
        (
            _OUTER,
            "EasyEdit has settings of KE but no code for it; kedit's defaults are the paper's (loss lagrangian), "
            "and these "
            "settings are of MEND's loop (loss mend)",
        ),
    ),
    *_two(
        "MALMEN",
        "malmen",
        _MALMEN,
        (
            _OUTER,
            "EasyEdit's files make n_edits 1, where MALMEN was made for hundreds at once: train with as many as you "
            "will "
            "edit",
        ),
    ),
    *_two(
        "SERAC",
        "serac",
        _SERAC,
        (
            "EasyEdit trains on the edit's own prompt with a mixture as the loss (objective easyedit); kedit as "
            "published",
        ),
    ),
)
