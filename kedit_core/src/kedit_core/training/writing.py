"""Writing a trained editor's folder, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from kedit_core.training.folder import CARD, FORMAT, KIND, STATE, TENSORS, check_place


def write_editor(
    folder: Path,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    more: Callable[[Path], None] = lambda folder: None,
) -> dict[str, Any]:
    """Write an editor beside ``folder``, then put it there; the state as it was written.

    Args:
        tensors: copied to the CPU; no file is written when there are none.
        state: JSON; format, kind, the tensors' digest and the editor's size are added here.
        more: writes further files.

    Raises InputError when something that is no editor is there already.
    """
    check_place(folder)
    beside = folder.parent / f".{folder.name}-{secrets.token_hex(4)}"
    try:
        beside.mkdir(parents=True)
        more(beside)
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}) if tensors else b""
        if data:
            (beside / TENSORS).write_bytes(data)
        size = sum(file.stat().st_size for file in beside.rglob("*") if file.is_file())
        whole = {
            **state,
            "format": FORMAT,
            "kind": KIND,
            "tensors_sha256": hashlib.sha256(data).hexdigest() if data else None,
            "cost": {**state.get("cost", {}), "editor_bytes": size},
        }
        text = json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        (beside / STATE).write_text(text + "\n", encoding="utf-8")
        (beside / CARD).write_text(card(whole), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return whole


def card(state: Mapping[str, Any]) -> str:
    """The README of an editor: what it is for, how to use it, how it was trained."""
    method, base, trained = state["method"], state["base"], state["trained"]
    name = base.get("name")
    lines = [f"# An editor for {name or 'a model without a name'}: {method['name']}", ""]
    if method.get("distribution"):
        lines += [f"Made by `kedit train` with {method['distribution']} {method['version']}.", ""]
    if base:
        digests = sorted(base["weights_sha256"].items())
        lines += [
            f"The base: architecture `{base['architecture']}`, revision {base['revision'] or 'not known'}.",
            "",
            "| of the base | SHA-256 |",
            "| --- | --- |",
            *(f"| weights as {dtype} | `{digest}` |" for dtype, digest in digests),
            f"| tokens | `{base['tokenizer_sha256']}` |",
            "",
        ]
    lines += [
        "```",
        f"kedit edit {name or 'MODEL'} --method {method['name']} --editor FOLDER --requests FILE -o PATCH",
        "```",
        "",
    ]
    if trained:
        data = [f"{part['records']} requests ({kind}, `{part['sha256'][:12]}`)" for kind, part in state["data"].items()]
        values = sorted((key, value) for key, value in trained["values"].items() if key != "iteration")
        lines += [
            f"Trained for {trained['iterations']} iterations on {' and '.join(data)}; best at "
            f"{trained['best_iteration']}:",
            "",
            "| validation | value |",
            "| --- | --- |",
            *(f"| {key} | {value:.4g} |" for key, value in values),
            "",
            "`state.json` has the settings, the digests of the data, and what the training cost.",
            "",
        ]
    return "\n".join(lines)
