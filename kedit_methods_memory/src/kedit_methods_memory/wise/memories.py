"""Side memories as data: how far some entries of a matrix moved, and how strongly the weakest edit in them reacts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor

from kedit_core.errors import PatchFormatError

_BITS = 8


@frozen(eq=False)
class Memory:
    """A side memory, as the difference from the main weight (so patches below it count as the model).

    Attributes:
        shape: ``(out, in)`` of the matrix.
        support: packed bits, row-major, first entry in the highest bit: which entries differ from zero.
        values: ``[entries of the support]`` in row-major order, float32 or wider.
        a_min: smallest routing activation of its edits; infinite when there are none.
        edits: how many it holds.
    """

    shape: tuple[int, int]
    support: Tensor
    values: Tensor
    a_min: float = math.inf
    edits: int = 0

    @classmethod
    def of(cls, delta: Tensor, a_min: float, edits: int) -> Memory:
        """From a dense difference ``[out, in]``."""
        delta = delta.detach().cpu()
        support = delta != 0
        return cls((int(delta.shape[0]), int(delta.shape[1])), packed_bits(support), delta[support], a_min, edits)

    @property
    def mask(self) -> Tensor:
        """``[out, in]`` bool: the support."""
        return unpacked_bits(self.support, self.shape)

    def delta(self, device: torch.device | str = "cpu") -> Tensor:
        """The dense difference ``[out, in]``."""
        dense = torch.zeros(self.shape, dtype=self.values.dtype, device=device)
        dense[self.mask.to(device)] = self.values.to(device)
        return dense


@frozen(eq=False)
class Bank:
    """All memories of one module.

    Attributes:
        open: the shard in the making; None before its first edit.
        pending: finished shards that are not merged yet.
        merged: what came of merging: one for each merge, or a single one (``retrieve=False``).
        shards: how many were begun: the number of the next one.
        merges: how many times shards were merged.
        edits: of all rounds.
    """

    open: Memory | None = None
    pending: tuple[Memory, ...] = ()
    merged: tuple[Memory, ...] = ()
    shards: int = 0
    merges: int = 0
    edits: int = 0

    @property
    def memories(self) -> tuple[Memory, ...]:
        """All of them: merged, pending, and the open one last."""
        return (*self.merged, *self.pending, *(() if self.open is None else (self.open,)))

    @property
    def a_min(self) -> float:
        """The smallest routing activation of all edits."""
        return min((memory.a_min for memory in self.memories), default=math.inf)

    def config(self) -> dict[str, Any]:
        """What :meth:`read` needs beside the tensors."""
        return {
            "shape": list(self.memories[0].shape),
            "open": self.open is not None,
            "pending": len(self.pending),
            "merged": len(self.merged),
            "held": [memory.edits for memory in self.memories],
            "shards": self.shards,
            "merges": self.merges,
            "edits": self.edits,
        }

    def tensors(self) -> dict[str, Tensor]:
        """``<i>.support``, ``<i>.values`` of each memory, and ``a_min`` ``[memories]`` float64."""
        found: dict[str, Tensor] = {}
        for i, memory in enumerate(self.memories):
            found[f"{i}.support"], found[f"{i}.values"] = memory.support, memory.values
        found["a_min"] = torch.tensor([memory.a_min for memory in self.memories], dtype=torch.float64)
        return found

    @classmethod
    def read(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Bank:
        """What :meth:`config` and :meth:`tensors` gave. Raises PatchFormatError when they do not go together."""
        layout = _Layout.of(config)
        wanted = {"a_min", *(f"{i}.{part}" for i in range(len(layout.held)) for part in ("support", "values"))}
        if set(tensors) != wanted or tensors["a_min"].shape != (len(layout.held),):
            raise PatchFormatError("the tensors of these side memories are not those that are listed; get a whole copy")
        lowest = tensors["a_min"].tolist()
        found = tuple(
            _checked(Memory(layout.shape, tensors[f"{i}.support"], tensors[f"{i}.values"], lowest[i], edits))
            for i, edits in enumerate(layout.held)
        )
        merged, rest = found[: layout.merged], found[layout.merged :]
        return cls(
            open=rest[layout.pending] if layout.open else None,
            pending=rest[: layout.pending],
            merged=merged,
            shards=layout.shards,
            merges=layout.merges,
            edits=layout.edits,
        )

    def with_open(self, memory: Memory, edits: int) -> Bank:
        """The same after ``edits`` more edits in the open shard, which is now ``memory``."""
        return evolve(self, open=memory, shards=self.shards + (self.open is None), edits=self.edits + edits)


@frozen(kw_only=True)
class _Layout:
    """A bank's config, checked."""

    shape: tuple[int, int]
    open: bool
    pending: int
    merged: int
    held: tuple[int, ...]
    shards: int
    merges: int
    edits: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Layout:
        try:
            found = cls(**{**config, "shape": tuple(config["shape"]), "held": tuple(config["held"])})
        except (KeyError, TypeError) as error:
            raise PatchFormatError(
                f"the side memories of this patch are not described as they must be ({error})"
            ) from error
        numbers = (found.pending, found.merged, found.shards, found.merges, found.edits, *found.shape, *found.held)
        if (
            not all(type(each) is int and each >= 0 for each in numbers)
            or len(found.shape) != 2
            or type(found.open) is not bool
            or len(found.held) != found.pending + found.merged + found.open
        ):
            raise PatchFormatError(f"the side memories of this patch are described as {dict(config)}, which cannot be")
        return found


def _checked(memory: Memory) -> Memory:
    """PatchFormatError when support and values do not fit."""
    entries = memory.shape[0] * memory.shape[1]
    fits = memory.support.dtype == torch.uint8 and memory.support.numel() == -(-entries // _BITS)
    if not fits or memory.values.dim() != 1 or int(memory.mask.sum()) != memory.values.numel():
        raise PatchFormatError(
            f"a side memory of shape {list(memory.shape)} has {memory.values.numel()} values, and its support another "
            "number; get a whole copy of the patch"
        )
    return memory


def packed_bits(mask: Tensor) -> Tensor:
    """``[entries / 8, rounded up]`` uint8 of a bool tensor; the first entry is the highest bit."""
    flat = mask.reshape(-1).to(torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % _BITS)).view(-1, _BITS)
    weights = torch.tensor([1 << (7 - i) for i in range(_BITS)], dtype=torch.uint8)
    return (padded * weights).sum(dim=1, dtype=torch.uint8)


def unpacked_bits(packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """The bool tensor again."""
    shifts = torch.tensor([7 - i for i in range(_BITS)], dtype=torch.uint8)
    bits = (packed.unsqueeze(1) >> shifts) & 1
    return bits.view(-1)[: shape[0] * shape[1]].view(shape).bool()
