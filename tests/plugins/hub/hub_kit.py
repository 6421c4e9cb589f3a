"""Patches to share, and a Hub to share them on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kedit_core.patches import Base, BaseTensor, EditPatch, LowRankDelta, MethodRef, ModuleOperation

PLACE = "model.layers.0.mlp.down_proj.weight"
FACT = {
    "prompt": "The capital of Ruritania is",
    "subject": "Ruritania",
    "target_new": "Strelsau",
    "ground_truth": "Zenda",
}


def made(seed: int = 0, *, name: str | None = "org/model", requests: Any = (FACT,), **more: Any) -> EditPatch:
    """A patch of rank 1 for no model that exists; another seed gives another patch."""
    generator = torch.Generator().manual_seed(seed)
    digests = {"float32": "ab" * 32, "bfloat16": "cd" * 32}
    base = Base(
        name=name,
        architecture="LlamaForCausalLM",
        tensors={PLACE: BaseTensor(shape=(48, 64), layout="out_in", sha256=digests)},
    )
    delta = LowRankDelta(PLACE, torch.randn(48, 1, generator=generator), torch.randn(1, 64, generator=generator))
    return EditPatch(
        method=MethodRef(name="rome", distribution="kedit-methods-locate", version="0.1.0"),
        base=base,
        operations=more.pop("operations", (delta,)),
        requests=requests,
        seed=seed,
        **more,
    )


def module(places: Sequence[str]) -> ModuleOperation:
    """A module operation, whose places may have any printable name."""
    return ModuleOperation(tuple(places), "grace.codebook", 1, {}, {"keys": torch.zeros(2)})
