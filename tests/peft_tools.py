"""What the tests of the PEFT plugin share: patches made by hand on tiny models, and logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kedit_core import Editor, EditPatch
from kedit_core.patches import DenseDelta, LowRankDelta, Operation
from kedit_core.testing.tiny import tiny_model

METHOD = {"name": "by_hand", "distribution": "kedit-tests", "version": "0.1"}
IDS = torch.tensor([[5, 17, 3, 40, 8, 21], [9, 9, 30, 11, 2, 7]])


def randoms(*shape: int, seed: int = 0, size: float = 0.1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * size


def shape_at(model: nn.Module, place: str) -> tuple[int, int]:
    """(out, in) of a projection's weight."""
    owner = model.get_submodule(place.removesuffix(".weight"))
    first, second = owner.weight.shape
    return (first, second) if isinstance(owner, nn.Linear | nn.Embedding) else (second, first)


def low_rank(model: nn.Module, place: str, rank: int = 2, seed: int = 0) -> LowRankDelta:
    out, inner = shape_at(model, place)
    return LowRankDelta(place, randoms(out, rank, seed=seed), randoms(rank, inner, seed=seed + 1))


def dense(model: nn.Module, place: str, seed: int = 0) -> DenseDelta:
    return DenseDelta(place, randoms(*shape_at(model, place), seed=seed, size=0.02))


def patch_of(model: nn.Module, operations: Sequence[Operation], **more: Any) -> EditPatch:
    base = Editor(model, None, None).stack.base_of(operations) if "base" not in more else more.pop("base")
    return EditPatch.build(method=METHOD, base=base, operations=operations, **more)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(IDS).logits
    return result


def patched_logits(family: str, patches: Sequence[EditPatch]) -> Tensor:
    """Of a fresh model with the patches merged into its weights."""
    editor = Editor(tiny_model(family), None, None)
    for patch in patches:
        editor.apply(patch, way="merged")
    return logits(editor.model)
