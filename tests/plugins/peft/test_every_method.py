"""A patch of every method that edits weights, exported and loaded by PEFT: the patched model's logits."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import ke_tools
import meta_tools
import pytest
import torch
from torch import Tensor, nn

from kedit_core import Editor, EditRequest
from kedit_core.plugins import Catalogue
from kedit_core.testing.tiny import tiny
from kedit_peft import export_peft, read_peft

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.slow

_QUICK: dict[str, Any] = {"v_num_grad_steps": 3, "context_lengths": [[6, 2]]}
_SPREAD: dict[str, Any] = {**_QUICK, "layers": [0, 1], "mom2_update_weight": 10.0}
_TUNED: dict[str, Any] = {"layers": [1], "num_steps": 3, "lr": 0.01, "train_bias": False}
SETTINGS: dict[str, dict[str, Any]] = {
    "rome": {**_QUICK, "layer": 1},
    "r_rome": {**_QUICK, "layer": 1},
    "memit": _SPREAD,
    "emmet": {**_SPREAD, "layers": [1]},
    "pmet": _SPREAD,
    "alphaedit": {**_QUICK, "layers": [0, 1], "nullspace_energy": 0.1, "l2": 0.1, "l2_unit": "keys"},
    "kn": {"steps": 3},
    "ft_l": {**_TUNED, "norm_constraint": 0.02},
    "ft_m": _TUNED,
    "ft_bf": {**_TUNED, "batch_size": 2},
    "lora": {"num_steps": 2},
    "adalora": {"num_steps": 2},
    "mend": {},
    "malmen": {},
    "ke": {"iterations": 2},
}
TRAINED = ("mend", "malmen", "ke")
FACT = EditRequest(prompt="The capital of France is", subject="France", target_new="Rome")
TEXTS = ("The capital of France is", "Alice works in the city of Paris and speaks", "Bob")


def weight_methods() -> set[str]:
    installed = Catalogue.installed()
    infos = [installed.method(name) for name in installed.methods()]
    return {info.name for info in infos if info.operations <= {"low_rank_delta", "dense_delta", "sparse_delta"}}


def editor_on(family: str, method: str, folders: Path) -> Editor:
    model, tokenizer = tiny(family)
    resources: dict[str, Path] = {}
    if method == "ke":
        resources = {"editor": ke_tools.trained(folders / f"ke-{family}", family)}
    elif method in TRAINED:
        more = {"edit_lr": 0.05} if method == "mend" else {"eta": 0.05, "batch_size": 4}
        resources = {"editor": meta_tools.trained(folders / f"{method}-{family}", family, method, **more)}
    return Editor(model, tokenizer, method, SETTINGS[method], resources=resources, catalogue=ke_tools.catalogue())


def logits(model: nn.Module, tokenizer: Any) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0] for text in TEXTS])


def test_the_table_has_every_method_that_edits_weights_only() -> None:
    assert weight_methods() == set(SETTINGS)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", list(SETTINGS))
def test_peft_gives_the_logits_of_the_patched_model(
    method: str, family: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Merged into the weights by PEFT, put back on by kedit, and beside them: there in float64, so that what is seen is
    the adapter and not the rounding of another order of sums (float32: 1e-5 of the largest logit)."""
    editor = editor_on(family, method, tmp_path_factory.getbasetemp() / "peft-editors")
    model, tokenizer = editor.model, editor.tokenizer
    model.save_pretrained(tmp_path / "base")
    base = logits(model, tokenizer)
    patch = editor.compute([FACT])
    with editor.applied(patch, way="merged"):
        patched = logits(model, tokenizer)
    report = export_peft(patch, tmp_path / "adapter")
    with editor.applied(read_peft(tmp_path / "adapter", tmp_path / "base"), way="merged"):
        back = logits(model, tokenizer)

    precise = Editor(copy.deepcopy(model).double(), tokenizer, None)
    with precise.applied(patch, way="merged"):
        wanted = logits(precise.model, tokenizer)
    beside64 = logits(peft.PeftModel.from_pretrained(precise.model, tmp_path / "adapter"), tokenizer)
    loaded = peft.PeftModel.from_pretrained(model, tmp_path / "adapter")
    beside = logits(loaded, tokenizer)
    merged = logits(loaded.merge_and_unload(), tokenizer)

    moved, largest = float((patched - base).abs().max()), float(patched.abs().max())
    found = {
        "merged": float((merged - patched).abs().max()),
        "beside, float64": float((beside64 - wanted).abs().max()),
        "back": float((back - patched).abs().max()),
    }
    rounded = float((beside - patched).abs().max())
    if (table := os.environ.get("KEDIT_PEFT_TABLE")) is not None:  # how the README's table is made
        row = {"method": method, "family": family, "moved": moved, **found, "beside, float32": rounded}
        with Path(table).open("a") as stream:
            stream.write(json.dumps({**row, "largest": largest, **report.details, "errors": report.errors}) + "\n")
    assert moved > 1e-3, "the edit does something"
    assert max(found.values()) <= 1e-5
    assert rounded <= 1e-5 * max(largest, 1.0)
