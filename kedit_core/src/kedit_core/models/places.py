"""Following an adapter's names through a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from kedit_core.models.adapter import ModelAdapter
from kedit_core.models.parameters import bare, is_projection


def list_name(template: str) -> str:
    """Name of the ModuleList that a block's template counts through: ``model.layers.{}`` -> ``model.layers``."""
    return template.partition(".{}")[0]


def resolve(model: nn.Module, name: str) -> nn.Module | None:
    """The module of a dotted name; None where the model holds None in its place.

    Raises:
        AttributeError: there is no such name.
    """
    found: Any = model
    for step in name.split("."):
        found = getattr(found, step)
    return found if isinstance(found, nn.Module) else None


def missing_places(adapter: ModelAdapter, model: nn.Module) -> list[str]:
    """What an adapter names and a model does not have, in any of its blocks, in words."""
    lists = [list_name(block) for block in (adapter.block, adapter.decoder_block) if block]
    if missing := [f"a list of blocks {name!r}" for name in lists if not _blocks(model, name)]:
        return missing
    count = _blocks(model, lists[0])
    missing = [repr(name) for name in _modules(adapter, count) if _lenient(model, name) is None]
    for name in _projections(adapter, count):
        module = _lenient(model, name)
        if module is None or not is_projection(bare(module)):
            missing.append(f"a projection {name!r}")
    return missing + [repr(name) for name in adapter.final_norm if not _there(model, name)]


def _modules(adapter: ModelAdapter, count: int) -> Iterator[str]:
    for part in (adapter.mlp, adapter.attn, adapter.norm_after_mlp):
        if part is not None:
            yield from (part.format(layer) for layer in range(count))
    yield adapter.embeddings
    if adapter.position_embeddings is not None:
        yield adapter.position_embeddings


def _projections(adapter: ModelAdapter, count: int) -> Iterator[str]:
    for part in (*adapter.mlp_in, adapter.mlp_out, adapter.attn_out):
        yield from (part.format(layer) for layer in range(count))
    yield adapter.lm_head


def _blocks(model: nn.Module, name: str) -> int:
    found = _lenient(model, name)
    return len(found) if isinstance(found, nn.ModuleList) else 0


def _lenient(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return resolve(model, name)
    except AttributeError:
        return None


def _there(model: nn.Module, name: str) -> bool:
    try:
        resolve(model, name)
    except AttributeError:
        return False
    return True
