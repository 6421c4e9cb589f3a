"""Which records come next: a seeded permutation, taken in order, and a new one when it is used up."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch

from kedit_core.errors import InputError


class Sampler:
    """The micro-batches of a training, numbered from 0 over all processes: what each holds follows from its number.

    So a resumed training goes on exactly, and several processes together take the very micro-batches, drawn with the
    very random numbers, that one process takes after another.

    Args:
        count: of records. batch_size: of them in a micro-batch.
        keep_incomplete: records left over at an epoch's end make a micro-batch of their own; else they are left out of
            it.
        numpy_order: the first permutation is that of ``numpy.random.default_rng(seed)``.

    Raises InputError when there is no record.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, *, keep_incomplete: bool = False, numpy_order: bool = False
    ) -> None:
        if count < 1:
            raise InputError("there is nothing to train on; give at least one record")
        self._count, self._size, self._seed, self._numpy = count, min(batch_size, count), seed, numpy_order
        # rounds up where leftovers are kept
        self.per_epoch = -(-count // self._size) if keep_incomplete else count // self._size
        self._order = lru_cache(maxsize=2)(self._permutation)

    def batch(self, number: int) -> tuple[list[int], torch.Generator]:
        """Record indices of a micro-batch, and the generator for everything else about it."""
        epoch, place = divmod(number, self.per_epoch)
        chosen = self._order(epoch)[place * self._size : (place + 1) * self._size]
        return list(chosen), _generator(f"{self._seed}/{epoch}/{place}")

    def _permutation(self, epoch: int) -> tuple[int, ...]:
        if self._numpy:
            rng = np.random.default_rng(self._seed if epoch == 0 else [self._seed, epoch])
            return tuple(rng.permutation(self._count).tolist())
        return tuple(torch.randperm(self._count, generator=_generator(f"{self._seed}/{epoch}")).tolist())


def _generator(text: str) -> torch.Generator:
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)
