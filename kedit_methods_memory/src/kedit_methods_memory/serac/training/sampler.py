"""Which records come next: a seeded permutation, taken in order, and a new one when it is used up."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from kedit_core.errors import InputError


class Sampler:
    """Batches of distinct record indices, and the generator that everything else about them is drawn from.

    The permutation, and all draws of an epoch after it, come from one generator that follows from seed, epoch and rank.
    Records left over at an epoch's end that make no whole batch are left out of it.

    Raises InputError when there is no record.
    """

    def __init__(self, count: int, batch_size: int, seed: int, rank: int = 0) -> None:
        if count < 1:
            raise InputError("there is nothing to train on; give at least one record")
        self._count, self._size = count, min(batch_size, count)
        self._seed, self._rank = seed, rank
        self._begin(0)

    def next(self) -> tuple[list[int], torch.Generator]:
        """The next batch."""
        if self._cursor + self._size > self._count:
            self._begin(self._epoch + 1)
        chosen = self._order[self._cursor : self._cursor + self._size]
        self._cursor += self._size
        return chosen, self._generator

    def state(self) -> tuple[dict[str, Any], Tensor]:
        """Where it stands: JSON, and the generator's state ``[bytes]`` uint8."""
        return {"epoch": self._epoch, "cursor": self._cursor}, self._generator.get_state()

    def restore(self, state: dict[str, Any], generator: Tensor) -> None:
        """Go on from where another stood."""
        self._begin(state["epoch"])
        self._cursor = state["cursor"]
        self._generator.set_state(generator)

    def _begin(self, epoch: int) -> None:
        text = f"{self._seed}/{epoch}/{self._rank}"
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
        self._generator = torch.Generator().manual_seed(number)
        self._order: list[int] = torch.randperm(self._count, generator=self._generator).tolist()
        self._epoch, self._cursor = epoch, 0
