"""Writing a trained editor's folder, whole or not at all."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from kedit_core.errors import KeditError
from kedit_core.training.folder import CARD, FORMAT, KIND, STATE, TENSORS, check_place

_BESIDE = ".kedit-{}-{}.editor"


def write_editor(
    folder: Path,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    more: Callable[[Path], None] = lambda folder: None,
) -> dict[str, Any]:
    """Write an editor beside ``folder``, then put it there; the state as it was written.

    A link is followed. What killed processes left of this is removed.

    Args:
        tensors: copied to the CPU; no file is written when there are none.
        state: JSON; format, kind, the tensors' digest and the editor's size are added here.
        more: writes further files.

    Raises:
        InputError: something that is no editor is there already.
        KeditError: it cannot be written; what was there before is as it was.
    """
    check_place(folder)
    folder = Path(os.path.realpath(folder))
    beside = folder.parent / _BESIDE.format(folder.name, secrets.token_hex(4))
    try:
        beside.mkdir(parents=True)
        whole = _fill(beside, tensors, state, more)
        _put(beside, folder)
    except (OSError, SafetensorError) as error:
        raise KeditError(
            f"the editor could not be written to {folder} ({getattr(error, 'strerror', None) or error}); make room, "
            "and write it with --resume"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    for left in folder.parent.glob(_BESIDE.format(glob.escape(folder.name), "[0-9a-f]" * 8) + "*"):
        shutil.rmtree(left, ignore_errors=True)
    return whole


def _fill(
    folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], more: Callable[[Path], None]
) -> dict[str, Any]:
    """Write an editor's files into a new folder; its state."""
    more(folder)
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}) if tensors else b""
    if data:
        (folder / TENSORS).write_bytes(data)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    whole = {
        **state,
        "format": FORMAT,
        "kind": KIND,
        "tensors_sha256": hashlib.sha256(data).hexdigest() if data else None,
        "cost": {**state.get("cost", {}), "editor_bytes": size},
    }
    text = json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (folder / STATE).write_text(text + "\n", encoding="utf-8")
    (folder / CARD).write_text(card(whole), encoding="utf-8")
    mode = (folder / STATE).stat().st_mode
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)  # libraries may write files that only their owner can read
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    return whole


def _put(beside: Path, folder: Path) -> None:
    """Put a folder in another's place, which is gone only when this is there."""
    before = beside.with_name(f"{beside.name}-before")
    if folder.exists():
        folder.rename(before)
    try:
        beside.rename(folder)
    except OSError:
        if before.exists():
            before.rename(folder)
        raise


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
            *(f"| {key} | {'none' if value is None else format(value, '.4g')} |" for key, value in values),
            "",
            "`state.json` has the settings, the digests of the data, and what the training cost.",
            "",
        ]
    return "\n".join(lines)
