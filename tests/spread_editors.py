"""Editors of MEMIT, EMMET, PMET and AlphaEdit on tiny models, with made-up statistics; what compares their patches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import evolve
from locate_tools import TEMPLATES, a_statistic
from plain_spread import deltas_of
from torch import Tensor, nn

from kedit_core import Editor, EditPatch
from kedit_core.models import ModelView
from kedit_core.testing.tiny import tiny
from kedit_methods_locate.stats import Statistic, save_statistics

LAYERS = (0, 1)
# a search of a few large steps, and a ridge that leaves part of what is asked for
QUICK: Mapping[str, Any] = {"layers": LAYERS, "v_num_grad_steps": 5, "v_lr": 0.3, "context_templates": list(TEMPLATES)}
OWN: Mapping[str, Mapping[str, Any]] = {
    "memit": {"mom2_update_weight": 40.0},
    "pmet": {"mom2_update_weight": 40.0},
    "emmet": {"mom2_update_weight": 40.0, "emmet_lambda": 0.5},
    "alphaedit": {"nullspace_rule": "absolute", "nullspace_threshold": 5.0, "l2": 0.5, "l2_unit": "absolute"},
}
METHODS = tuple(OWN)


def made_up(view: ModelView, layer: int, projection: str = "mlp_out") -> Statistic:
    """The statistic that :func:`spread_editor` gives a projection."""
    if projection == "mlp_out":
        return a_statistic(layer, view.mlp_size(layer), seed=layer)
    made = a_statistic(layer, view.attn_size(layer), seed=100 + layer)
    return evolve(made, record={**made.record, "site": "attn_out.input"})


def matrices_of(editor: Editor, layers: Iterable[int] = range(3)) -> dict[int, Tensor]:
    """Layer -> the second moments ``[in, in]`` of the MLP's projection."""
    return {layer: made_up(editor.adapter, layer).matrix for layer in layers}


def spread_editor(
    family: str,
    folder: Path,
    method: str = "memit",
    *,
    dtype: torch.dtype = torch.float64,
    model: nn.Module | None = None,
    statistics: Iterable[Statistic] | None = None,
    **hparams: Any,
) -> Editor:
    """An Editor on a tiny model (or on ``model`` with that family's tokenizer), with ``statistics`` or made-up ones of
    both projections of its first layers, given templates and quick settings."""
    made, tokenizer = tiny(family, dtype=dtype)
    settings = {**QUICK, **OWN[method], **hparams}
    editor = Editor(made if model is None else model, tokenizer, method, settings, cache=folder / "cache")
    path = folder / f"{family}.safetensors"
    if statistics is not None:
        save_statistics(path, list(statistics))
    elif not path.exists():
        layers = range(min(3, editor.adapter.num_layers))
        save_statistics(path, [made_up(editor.adapter, i, each) for i in layers for each in ("mlp_out", "attn_out")])
    editor.options["stats"] = path
    return editor


def relative(found: Tensor, wanted: Tensor) -> float:
    """Size of the difference as a share of what is wanted."""
    return float((found - wanted).norm() / wanted.norm())


def apart(found: EditPatch, wanted: EditPatch) -> float:
    """The largest relative difference of two patches' updates of the same places."""
    mine, theirs = deltas_of(found), deltas_of(wanted)
    assert mine.keys() == theirs.keys()
    return max(relative(mine[place], theirs[place]) for place in theirs)


def orphaned(patch: EditPatch) -> bytes:
    """A patch's bytes without its parents."""
    return evolve(patch, parents=()).to_bytes()


def codes(warnings: Iterable[Any]) -> dict[str, Any]:
    """Code of each warning -> its number."""
    return {warning.code: warning.number for warning in warnings}
