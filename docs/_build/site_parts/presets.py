"""The presets that a method ships, as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kedit_core.hparams import Preset, load_presets
from site_parts.text import code, table


def presets_table(folder: str | None) -> str:
    """For which models there are presets, what they set and where the numbers are from."""
    presets = load_presets(folder) if folder is not None else []
    if not presets:
        return "There are no presets."
    rows = [[each.name, _shapes(each), _values(each.hparams), each.origin or "-"] for each in presets]
    return table(["preset", "for", "settings", "where they are from"], rows)


def _shapes(preset: Preset) -> str:
    return ", ".join(
        f"{each.architecture}, {each.num_layers} x {each.hidden_size}"
        + (f", MLP {each.mlp_size}" if each.mlp_size is not None else "")
        for each in preset.shapes
    )


def _values(hparams: Mapping[str, Any]) -> str:
    listed = (code(f"{name}={json.dumps(value)}") for name, value in _plain(hparams).items())
    return ", ".join(listed) or "all as by default"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
