"""Settings of EasyEdit, converted: every field of its classes has a rule, and our classes take what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kedit_core.errors import HyperParamsError, InputError
from kedit_core.hparams import read_settings
from kedit_core.plugins import Catalogue, load_object
from kedit_easyedit import convert, convert_file
from kedit_easyedit.modules import module, parts_and_layers
from kedit_easyedit.tables import TABLES, WITHOUT

# The fields of EasyEdit's settings classes at commit 14cea82, written down by hand.
_TEMPLATES = "rewrite_module_tmp layer_module_tmp mlp_module_tmp attn_module_tmp ln_f_module lm_head_module"
_STATISTICS = "mom2_dataset mom2_n_samples mom2_dtype stats_dir"
_COMMON = "alg_name device model_name max_length model_parallel"
_SEARCH = (
    "layers fact_token v_num_grad_steps v_lr v_loss_layer v_weight_decay clamp_norm_factor kl_factor mom2_adjustment "
    f"{_TEMPLATES} {_STATISTICS} {_COMMON}"
)
_SPREAD = f"{_SEARCH} layer_selection mom2_update_weight batch_size"
_TRAINER = (
    "model_class tokenizer_class tokenizer_name inner_params archive alg debug dropout train_base no_grad_layers "
    "results_dir model_save_pt silent log_interval val_interval early_stop_patience early_stop_key eval_only half save "
    f"val_batch_size val_steps max_epochs max_iters batch_size final_eval {_COMMON}"
)
_BY_GRADIENT = (
    f"{_TRAINER} lr edit_lr lr_lr seed cedit cloc cbase verbose eval_log_interval accumulate_bs opt grad_clip"
)
FIELDS: Mapping[str, str] = {
    "ROME": f"{_SEARCH} context_template_length_params fp16",
    "R-ROME": (
        f"{_SEARCH} context_template_length_params fp16 enable_prompt_keys enable_random_prefix_keys "
        "original_implementation"
    ),
    "MEMIT": _SPREAD,
    "EMMET": f"{_SPREAD} update_norm_lambda emmet_lambda",
    "PMET": f"{_SPREAD} nll_loss_factor rewrite_module_tmps",
    "AlphaEdit": f"{_SPREAD} nullspace_threshold L2 P_loc",
    "KN": f"lr_scale n_toks refine batch_size steps adaptive_threshold p {_COMMON}",
    "FT": (
        "layers num_steps lr weight_decay kl_factor norm_constraint objective_optimization batch_size "
        f"{_TEMPLATES} {_COMMON}"
    ),
    "LoRA": (
        "lora_type layers num_steps lr weight_decay kl_factor norm_constraint target_modules rank lora_alpha "
        f"lora_dropout batch_size {_COMMON}"
    ),
    "GRACE": (
        "edit_lr n_iter eps dist_fn val_init val_train val_reg reg replacement eps_expand num_pert dropout "
        f"inner_params batch_size {_COMMON}"
    ),
    "WISE": (
        "edit_lr n_iter objective_optimization mask_ratio alpha beta gamma act_margin act_ratio merge_freq retrieve "
        "replay save_freq merge_alg norm_constraint inner_params weights densities batch_size use_chat_template "
        f"save_path load_path {_COMMON}"
    ),
    "MELO": (
        f"{_COMMON} task lora_task_type check_dir grace.name grace.num_iter grace.init_radius grace.dist_fn "
        "grace.val_init grace.val_train grace.val_reg grace.reg grace.replacement grace.expand_mode grace.num_pert "
        "grace.key_id grace.num_edit_per_block grace.num_block grace.num_rank_per_block grace.metric_period "
        "grace.edit_lr model.name model.class_name model.tokenizer_class model.tokenizer_name model.fan_in_fan_out "
        "model.target_modules model.pt model.grace_layer lora.cls_name lora.cls_class lora.supervised lora.cos "
        "lora.freeze lora.square lora.bound_embeds lora.use_all_negatives lora.freeze_lora lora.dist_heads "
        "lora.cross_attend lora.soft_weighting lora.checkpoint_grad lora.lora_r lora.lora_alpha lora.lora_dropout"
    ),
    "IKE": "device alg_name model_name sentence_model_name k results_dir use_icl_examples model_parallel",
    "MEND": (
        f"{_BY_GRADIENT} lr_scale one_sided n_hidden hidden_dim init norm combine x_only delta_only act rank mlp_class "
        "shared max_output_length"
    ),
    "KE": f"{_BY_GRADIENT} lr_scale",
    "MALMEN": (
        f"{_TRAINER} rank n_edits n_blocks lr meta_lr loc_coef max_grad_norm token editor_batch_size eval_log_interval"
    ),
    "SERAC": (
        f"{_TRAINER} small_name cls_name cls_class lr edit_lr seed lr_lr cedit cloc cbase supervised soft_weighting "
        "checkpoint_grad cross_attend cos freeze square bound_embeds use_all_negatives freeze_cntr dist_heads lora "
        "edit_bs log_errors unlikelihood accumulate_bs opt grad_clip exact_match"
    ),
}

GPT2 = {f"{name}_module_tmp": "x" for name in ("rewrite", "layer", "mlp", "attn")}
STATS = {"mom2_dataset": "wikipedia", "mom2_n_samples": 100_000, "mom2_dtype": "float32", "stats_dir": "./data/stats"}
SEARCH = {
    "layers": [17],
    "fact_token": "subject_last",
    "v_num_grad_steps": 20,
    "v_lr": 0.5,
    "v_loss_layer": 47,
    "v_weight_decay": 0.5,
    "clamp_norm_factor": 4,
    "kl_factor": 0.0625,
    "mom2_adjustment": False,
    **GPT2,
    **STATS,
    "device": 0,
    "model_name": "./hugging_cache/gpt2-xl",
    "model_parallel": False,
}
SPREAD = {
    **SEARCH,
    "layers": [13, 14, 15],
    "layer_selection": "all",
    "mom2_adjustment": True,
    "mom2_update_weight": 20000,
}
DOWN = [f"model.layers.{i}.mlp.{part}_proj.weight" for i in (29, 30) for part in ("gate", "up", "down")]
TRAINER = {
    "inner_params": DOWN,
    "archive": None,
    "seed": 42,
    "cedit": 0.1,
    "cloc": 1.0,
    "cbase": 1.0,
    "train_base": False,
    "batch_size": 2,
    "max_iters": 50_000,
    "val_steps": 100,
    "early_stop_key": "loss/total_edit_val",
    "accumulate_bs": 10,
    "opt": "Adam",
    "grad_clip": 100.0,
}


def shared(**more: Any) -> dict[str, Any]:
    """Settings of ours that SEARCH becomes, apart from the layers."""
    return {
        "fact_token": "subject_last",
        "v_num_grad_steps": 20,
        "v_lr": 0.5,
        "v_weight_decay": 0.5,
        "clamp_norm_factor": 4,
        "kl_factor": 0.0625,
        "mom2_documents": 100_000,
        **more,
    }


CASES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    (
        "ROME",
        {**SEARCH, "context_template_length_params": [[5, 10], [10, 10]], "fp16": False},
        "rome",
        shared(layer=17, mom2_adjustment=False, context_lengths=[[5, 10], [10, 10]]),
    ),
    (
        "R-ROME",
        {**SEARCH, "enable_prompt_keys": True, "enable_random_prefix_keys": False},
        "r_rome",
        shared(layer=17, mom2_adjustment=False, variant="p_rome"),
    ),
    (
        "R-ROME",
        {**SEARCH, "original_implementation": True, "enable_prompt_keys": False},
        "rome",
        shared(layer=17, mom2_adjustment=False),
    ),
    ("MEMIT", SPREAD, "memit", shared(layers=[13, 14, 15], v_loss_layer=47, mom2_update_weight=20000)),
    (
        "EMMET",
        {**SPREAD, "emmet_lambda": 0.2, "update_norm_lambda": 0},
        "emmet",
        shared(layers=[13, 14, 15], v_loss_layer=47, mom2_update_weight=20000, emmet_lambda=0.2, update_norm_lambda=0),
    ),
    (
        "PMET",
        {
            **SPREAD,
            "nll_loss_factor": 2,
            "rewrite_module_tmps": ["transformer.h.{}.mlp.fc_out", "transformer.h.{}.attn.out_proj"],
        },
        "pmet",
        shared(
            layers=[13, 14, 15],
            v_loss_layer=47,
            mom2_update_weight=20000,
            nll_loss_factor=2,
            projections=["mlp_out", "attn_out"],
        ),
    ),
    (
        "AlphaEdit",
        {**SPREAD, "nullspace_threshold": 0.02, "L2": 10, "P_loc": "./null_space_project.pt"},
        "alphaedit",
        shared(
            layers=[13, 14, 15],
            v_loss_layer=47,
            nullspace_rule="absolute",
            nullspace_threshold=0.02,
            l2=10,
            l2_unit="absolute",
        ),
    ),
    (
        "KN",
        {
            "lr_scale": 1.0,
            "n_toks": 10,
            "refine": True,
            "batch_size": 20,
            "steps": 20,
            "adaptive_threshold": 0.2,
            "p": 0.4,
        },
        "kn",
        {"prompts": "rephrase", "steps": 20, "threshold": 0.2, "refine_share": 0.4},
    ),
    (
        "FT",
        {
            "layers": [21],
            "num_steps": 25,
            "lr": 5e-4,
            "weight_decay": 0,
            "kl_factor": 0,
            "norm_constraint": False,
            "objective_optimization": "prompt_last",
            "rewrite_module_tmp": "model.layers.{}.mlp.down_proj.weight",
            "batch_size": 1,
        },
        "ft_l",
        {
            "layers": [21],
            "num_steps": 25,
            "lr": 5e-4,
            "weight_decay": 0,
            "norm_constraint": None,
            "part": "mlp_out",
            "train_bias": False,
            "batch_size": 1,
        },
    ),
    (
        "FT",
        {
            "layers": [0, 21],
            "norm_constraint": 5e-5,
            "objective_optimization": "target_new",
            "rewrite_module_tmp": "decoder.block.{}.layer.2.DenseReluDense.wo",
        },
        "ft_m",
        {"layers": [0, 21], "norm_constraint": 5e-5, "part": "mlp_out", "train_bias": True, "stack": "decoder"},
    ),
    (
        "LoRA",
        {
            "lora_type": "lora",
            "rank": 8,
            "lora_alpha": 32,
            "lora_dropout": 0.1,
            "target_modules": ["q_proj"],
            "layers": [],
        },
        "lora",
        {"rank": 8, "alpha": 32, "dropout": 0.1, "targets": ["q_proj"], "layers": []},
    ),
    (
        "LoRA",
        {"lora_type": "adalora", "rank": 8, "lora_alpha": 32, "num_steps": 30, "norm_constraint": False},
        "adalora",
        {"parity": True, "alpha": 32, "num_steps": 30},
    ),
    (
        "GRACE",
        {
            "inner_params": ["transformer.h[35].mlp.c_fc.weight"],
            "edit_lr": 1.0,
            "n_iter": 200,
            "eps": 1.0,
            "dist_fn": "euc",
            "val_init": "cold",
            "val_train": "sgd",
            "val_reg": "None",
            "reg": "early_stop",
            "replacement": "replace_last",
            "eps_expand": "moving_avg",
            "num_pert": 8,
            "dropout": 0.0,
        },
        "grace",
        {
            "layer": 35,
            "part": "mlp_in",
            "edit_lr": 1.0,
            "n_iter": 200,
            "eps0": 1.0,
            "value_init": "cold",
            "replacement": "replace_last",
            "expand": "moving_average",
        },
    ),
    (
        "WISE",
        {
            "inner_params": ["model.layers[27].mlp.down_proj.weight"],
            "mask_ratio": 0.2,
            "edit_lr": 1.0,
            "n_iter": 70,
            "norm_constraint": 1.0,
            "act_margin": [5.0, 20.0, 10.0],
            "act_ratio": 0.88,
            "save_freq": 500,
            "merge_freq": 1000,
            "merge_alg": "ties",
            "objective_optimization": "only_label",
            "densities": 0.53,
            "weights": 1.0,
            "retrieve": True,
            "replay": False,
        },
        "wise",
        {
            "layer": 27,
            "part": "mlp_out",
            "rho": 0.2,
            "lr": 1.0,
            "n_iter": 70,
            "norm_constraint": 1.0,
            "alpha": 5.0,
            "beta": 20.0,
            "gamma": 10.0,
            "act_ratio": 0.88,
            "save_freq": 500,
            "merge_freq": 1000,
            "merge_alg": "ties",
            "density": 0.53,
            "weights": 1.0,
            "retrieve": True,
            "replay": False,
        },
    ),
    (
        "MELO",
        {
            "task": "hall",
            "grace": {
                "num_iter": 50,
                "init_radius": 0.5,
                "dist_fn": "euc",
                "expand_mode": "moving_avg",
                "key_id": -1,
                "num_edit_per_block": 4,
                "num_block": 350,
                "num_rank_per_block": 2,
                "edit_lr": 0.001,
            },
            "model": {
                "target_modules": ["transformer.h.36.mlp.c_fc", "transformer.h.37.mlp.c_fc"],
                "grace_layer": "transformer.h.35.mlp.c_fc",
            },
            "lora": {"lora_r": 64, "lora_dropout": 0.0},
        },
        "melo",
        {
            "num_iter": 50,
            "radius": 0.5,
            "edits_per_block": 4,
            "blocks": 350,
            "rank": 2,
            "lr": 0.001,
            "parts": ["mlp_in"],
            "layers": [36, 37],
            "scope_layer": 35,
            "scope_part": "mlp_in",
        },
    ),
    (
        "IKE",
        {"k": 16, "sentence_model_name": "./hugging_cache/all-MiniLM-L6-v2", "results_dir": "./results"},
        "ike",
        {"mode": "easyedit", "k": 16, "encoder": "sentence-transformers/all-MiniLM-L6-v2"},
    ),
    (
        "MEND",
        {
            **TRAINER,
            "alg": "MEND",
            "lr": 1e-6,
            "edit_lr": 1e-4,
            "lr_lr": 1e-4,
            "combine": True,
            "x_only": False,
            "delta_only": True,
            "rank": 1920,
            "shared": True,
        },
        "mend",
        {
            "parts": ["mlp_in", "mlp_out"],
            "layers": [29, 30],
            "c_edit": 0.1,
            "c_loc": 1.0,
            "batch_size": 2,
            "n_edits": 2,
            "iterations": 50_000,
            "val_items": 100,
            "early_stop_key": "loss/total",
            "accumulate": 10,
            "clip": 100.0,
            "lr": 1e-6,
            "edit_lr": 1e-4,
            "lr_lr": 1e-4,
            "transform": "gradients",
            "rank": 1920,
            "shared": True,
        },
    ),
    (
        "KE",
        {**TRAINER, "lr": 1e-5, "edit_lr": 1e-2},
        "ke",
        {
            "editable": "chosen",
            "parts": ["mlp_in", "mlp_out"],
            "layers": [29, 30],
            "loss": "mend",
            "c_edit": 0.1,
            "c_loc": 1.0,
            "batch_size": 2,
            "iterations": 50_000,
            "val_items": 100,
            "early_stop_key": "loss/total",
            "accumulate": 10,
            "clip": 100.0,
            "lr": 1e-5,
        },
    ),
    (
        "MALMEN",
        {
            "inner_params": ["transformer.h.46.mlp.c_proj.weight", "transformer.h.47.mlp.c_proj.weight"],
            "archive": None,
            "n_edits": 512,
            "batch_size": 16,
            "editor_batch_size": 1024,
            "lr": 1e-6,
            "meta_lr": 1e-5,
            "loc_coef": 1,
            "max_grad_norm": 1,
            "token": "mask",
            "early_stop_key": "ES_val",
        },
        "malmen",
        {
            "parts": ["mlp_out"],
            "layers": [46, 47],
            "batch_size": 512,
            "micro_batch": 16,
            "chunk": 1024,
            "eta": 1e-6,
            "lr": 1e-5,
            "c_loc": 1,
            "clip": 1,
            "token": "mask",
            "early_stop_key": "edit/acc",
        },
    ),
    (
        "SERAC",
        {
            "inner_params": [],
            "archive": None,
            "small_name": "gpt2",
            "supervised": False,
            "cross_attend": False,
            "cos": False,
            "square": True,
            "dist_heads": 1,
            "edit_bs": 10,
            "cedit": 0.1,
        },
        "serac",
        {
            "objective": "easyedit",
            "form": "embedding",
            "measure": "l2",
            "square": True,
            "heads": 1,
            "batch_size": 10,
            "c_edit": 0.1,
        },
    ),
]


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue.installed()


@pytest.mark.parametrize(("name", "given", "method", "wanted"), CASES, ids=[f"{case[0]}-{case[2]}" for case in CASES])
def test_settings_of_each_method(
    name: str, given: dict[str, Any], method: str, wanted: dict[str, Any], catalogue: Catalogue, tmp_path: Path
) -> None:
    found = convert({"alg_name": name, **given}, catalogue=catalogue)
    assert (found.method, dict(found.settings), found.checked) == (method, wanted, True)
    assert {each.outcome for each in found.told} <= {"converted", "dropped"}
    file = tmp_path / "ours.yaml"
    file.write_text(found.to_yaml())
    assert read_settings(file) == found.settings
    info = catalogue.method(method)
    cls = load_object(info.training) if found.training else catalogue.hparams_class(info)
    made = cls.from_dict({"layers": [1], "scope_layer": 0, **found.settings} if method == "melo" else found.settings)
    assert all(made.to_dict()[key] == value for key, value in found.settings.items())


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_of_their_classes_has_a_rule(name: str, catalogue: Catalogue) -> None:
    fields = FIELDS[name].split()
    tables = [table for table in TABLES if table.name == name]
    assert tables
    for table in tables:
        assert sorted(set(fields) - table.rules.keys()) == []
        if "." not in "".join(fields):
            told = convert(
                {**dict.fromkeys(fields), "alg_name": name}, training=table.training or None, catalogue=catalogue
            ).told
            assert [each.key for each in told if each.outcome == "unknown"] == []


def test_all_tables_are_tested() -> None:
    assert {table.name for table in TABLES} == set(FIELDS) == {case[0] for case in CASES}
    assert not set(WITHOUT) & {table.name.upper().replace("-", "") for table in TABLES}


def test_rules_have_reasons_where_nothing_is_converted() -> None:
    for table in TABLES:
        for key, rule in table.rules.items():
            answer = rule(object())
            assert answer.outcome == "converted" or answer.why, f"{table.name}: {key}"


@pytest.mark.parametrize(
    ("given", "key", "why"),
    [
        ({"alg_name": "ROME", "layers": [5, 6]}, "layers", "edits one layer"),
        ({"alg_name": "ROME", "v_lr": "fast"}, "v_lr", "v_lr"),
        ({"alg_name": "MEMIT", "fact_token": "last"}, "fact_token", "no token of a subject"),
        ({"alg_name": "MEMIT", "layer_selection": "random"}, "layer_selection", "all the layers"),
        ({"alg_name": "ROME", "fp16": True}, "fp16", "--dtype float16"),
        ({"alg_name": "GRACE", "dist_fn": "cos"}, "dist_fn", "Euclidean"),
        ({"alg_name": "GRACE", "eps_expand": "decay"}, "eps_expand", "moving_average"),
        ({"alg_name": "GRACE", "inner_params": ["model.layers[3].mlp.gate_proj.weight"]}, "inner_params", "gated MLP"),
        ({"alg_name": "FT", "objective_optimization": "both"}, "objective_optimization", "target_new is ft_m"),
        ({"alg_name": "FT", "rewrite_module_tmp": "model.norm"}, "rewrite_module_tmp", "not the name of a projection"),
        ({"alg_name": "IKE", "sentence_model_name": "./encoder"}, "sentence_model_name", "--with encoder=FOLDER"),
        ({"alg_name": "WISE", "use_chat_template": True}, "use_chat_template", "chat"),
        ({"alg_name": "MEND", "inner_params": DOWN[1:3]}, "inner_params", "not the other"),
        ({"alg_name": "MEND", "inner_params": DOWN[:4]}, "inner_params", "differ from block to block"),
        ({"alg_name": "MEND", "train_base": True}, "train_base", "never trains the model"),
        ({"alg_name": "SERAC", "soft_weighting": True}, "soft_weighting", "no route"),
        ({"alg_name": "MEND", "archive": "./results/mend"}, "archive", "pickled"),
    ],
)
def test_what_is_not_supported_is_told_with_the_reason(
    given: dict[str, Any], key: str, why: str, catalogue: Catalogue
) -> None:
    found = convert(given, catalogue=catalogue)
    told = next(each for each in found.told if each.key == key)
    assert told.outcome == "unsupported"
    assert why in told.why
    assert not told.settings
    assert f"# not here: {key}" in found.to_yaml()


@pytest.mark.parametrize("name", ["FT", "WISE"])
def test_a_bound_on_weights_is_a_float_as_in_easyedit(name: str, catalogue: Catalogue) -> None:
    """``type(norm_constraint) is float`` there; false and whole numbers bound nothing."""
    for given, wanted in ((0.5, 0.5), (False, None), (1, None)):
        found = convert({"alg_name": name, "norm_constraint": given}, catalogue=catalogue)
        assert found.settings["norm_constraint"] == wanted
        assert found.told[1].outcome == "converted"


def test_unknown_keys_are_told(catalogue: Catalogue) -> None:
    found = convert({"alg_name": "ROME", "v_learning": 1, "nested": {"deep": 2}}, catalogue=catalogue)
    assert [each.key for each in found.told if each.outcome == "unknown"] == ["v_learning", "nested.deep"]


def test_which_method(catalogue: Catalogue) -> None:
    assert convert({"alg_name": "FT"}, method="ft_bf", catalogue=catalogue).method == "ft_bf"
    assert convert({"layers": [3]}, method="memit", catalogue=catalogue).settings == {"layers": [3]}
    assert convert({"alg_name": "rome"}, catalogue=catalogue).method == "rome"
    with pytest.raises(InputError, match="names no method"):
        convert({"layers": [3]}, catalogue=catalogue)
    with pytest.raises(InputError, match="ROME, which is rome or r_rome in kedit, not grace"):
        convert({"alg_name": "ROME"}, method="grace", catalogue=catalogue)
    with pytest.raises(InputError, match="baseline of GRACE's"):
        convert({"alg_name": "DEFER"}, catalogue=catalogue)
    with pytest.raises(InputError, match="knows no such method"):
        convert({"alg_name": "NOPE"}, catalogue=catalogue)
    with pytest.raises(InputError, match="t_patcher is no counterpart"):
        convert({}, method="t_patcher", catalogue=catalogue)
    with pytest.raises(InputError, match="model of images"):
        convert({"alg_name": "MEND", "coco_image": "../"}, catalogue=catalogue)


def test_training_or_editing(catalogue: Catalogue) -> None:
    assert convert({"alg": "MEND", "archive": None}, catalogue=catalogue).training
    editing = convert({"alg_name": "MEND", "archive": "./x", "rank": 1920, "lr": 1e-6}, catalogue=catalogue)
    assert (editing.training, editing.settings) == (False, {})
    assert convert({"alg": "MEND", "archive": "./x"}, training=True, catalogue=catalogue).training
    with pytest.raises(InputError, match="needs no training"):
        convert({"alg_name": "ROME"}, training=True, catalogue=catalogue)


def test_settings_that_do_not_go_together(catalogue: Catalogue) -> None:
    with pytest.raises(HyperParamsError, match="multiple of save_freq"):
        convert({"alg_name": "WISE", "merge_freq": 1000, "save_freq": 300}, catalogue=catalogue)


def test_without_the_method_it_still_converts() -> None:
    found = convert({"alg_name": "GRACE", "eps": 2.0}, catalogue=Catalogue(entries=()))
    assert (found.method, found.settings, found.checked) == ("grace", {"eps0": 2.0}, False)


def test_files_are_read_as_kedits_own(tmp_path: Path, catalogue: Catalogue) -> None:
    file = tmp_path / "rome.yaml"
    file.write_text("alg_name: ROME\nv_lr: 5e-1\nlayers: [17]\n")
    assert convert_file(file, catalogue=catalogue).settings == {"v_lr": 0.5, "layer": 17}
    for text in ("alg_name: ROME\nalg_name: FT\n", "!!python/object/apply:os.system ['true']\n", "- 1\n"):
        file.write_text(text)
        with pytest.raises(HyperParamsError):
            convert_file(file, catalogue=catalogue)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("transformer.h.{}.mlp.c_proj", (None, "mlp_out", None, False)),
        ("transformer.h[35].mlp.c_fc.weight", (35, "mlp_in", None, True)),
        ("gpt_neox.layers.3.mlp.dense_4h_to_h", (3, "mlp_out", None, False)),
        ("model.decoder.layers.2.fc2.weight", (2, "mlp_out", None, True)),
        ("encoder.block.22.layer.1.DenseReluDense.wi.weight", (22, "mlp_in", "encoder", True)),
        ("model.layers.4.self_attn.o_proj", (4, "attn_out", None, False)),
    ],
)
def test_module_names(name: str, wanted: tuple[Any, ...]) -> None:
    found = module(name)
    assert (found.layer, found.part, found.stack, found.weight) == wanted


def test_modules_of_an_encoder_decoder() -> None:
    names = [
        f"{stack}.block.{i}.layer.1.DenseReluDense.wo.weight" for stack in ("encoder", "decoder") for i in (22, 23)
    ]
    assert parts_and_layers(names) == {"parts": ["mlp_out"], "layers": [22, 23], "decoder_layers": [22, 23]}
