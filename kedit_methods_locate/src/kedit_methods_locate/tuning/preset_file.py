"""Presets as files that ``kedit edit --preset`` and package presets read back. Imports no torch."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

from kedit_core.cli.outputs import check_file
from kedit_core.errors import InputError
from kedit_core.files import replacing
from kedit_core.hparams import Preset

_ENDINGS = (".yaml", ".yml")
_WIDTH = 110


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse a place where no preset can be written (InputError): before the work is done, not after it."""
    if path.suffix.lower() not in _ENDINGS:
        raise InputError(f"-o {path} must end in .yaml, so that it can be read as a preset")
    check_file("-o", path, "preset.yaml")
    if path.exists() and not overwrite:
        raise InputError(f"-o {path} is there already; give another name, or --overwrite")


def preset_text(preset: Preset) -> str:
    """A preset as YAML. Values are written as JSON, which is YAML that every version reads alike."""
    first = preset.shapes[0]
    lines = [
        "match:",
        f"  architecture: {_json([shape.architecture for shape in preset.shapes])}",
        f"  num_layers: {first.num_layers}",
        f"  hidden_size: {first.hidden_size}",
        *([] if first.mlp_size is None else [f"  mlp_size: {first.mlp_size}"]),
        "hparams:" if preset.hparams else "hparams: {}",
        *(f"  {name}: {_json(value)}" for name, value in preset.hparams.items()),
        "source: >-",
        *textwrap.wrap(
            preset.origin,
            _WIDTH,
            initial_indent="  ",
            subsequent_indent="  ",
            break_on_hyphens=False,
            break_long_words=False,
        ),
    ]
    return "\n".join(lines) + "\n"


def save_preset(preset: Preset, path: Path | str, *, overwrite: bool = False) -> None:
    """Write a preset in one step. Raises InputError for a place where it cannot be, or where a file is already."""
    check_output(Path(path), overwrite)
    with replacing(path) as stream:
        stream.write(preset_text(preset).encode())


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
