"""The second-moment statistic of one layer's keys, and what is solved with it.

``C = (1/N) sum k k^T`` over the inputs of the MLP's down-projection at every real token: which key directions ordinary
text uses (Meng et al. 2022, section 3.1). It is not centred. What is stored is the float32 cast of the float64 sum, and
N; everything is worked out from these, so that a statistic read from a file gives the bits that a fresh one gives.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from attrs import evolve, field, frozen
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from kedit_core.errors import MethodError
from kedit_methods_locate.stats.definite import Factorised, mean_of, mean_times, solving_device
from kedit_methods_locate.stats.derived import DISK_FROM, derived

T = TypeVar("T")

TOKENS_PER_WIDTH = 10
"""Fewer tokens than this times the width make a statistic that is noise in its small directions."""

_DEAD = 1e-10  # of the mean diagonal
_RIDGES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)  # of the mean diagonal, tried in turn
_SPECTRUM_UP_TO = 4096  # widths whose eigenvalues are worth their time (10 m^3)
_SUMMARY = "summary"


@frozen(eq=False, slots=False)
class Statistic:
    """Sum of ``k k^T`` over the tokens of a corpus, for one layer.

    Attributes:
        layer: the block.
        sum: ``[in, in]`` float32, symmetric.
        count: tokens in the sum.
        record: what it was made from (weights, tokenizer, corpus, sample, ...), JSON-able; empty when unknown. One that
            was collected has its ``summary`` there, too, which no key depends on.
    """

    layer: int
    sum: Tensor
    count: int
    record: Mapping[str, Any] = field(factory=dict)
    _memory: dict[Hashable, Any] = field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.sum.ndim != 2 or self.sum.shape[0] != self.sum.shape[1] or self.count < 1:
            raise MethodError(
                f"the statistic of layer {self.layer} has shape {tuple(self.sum.shape)} over {self.count} tokens; "
                "a square sum over at least one token is needed; collect it again"
            )
        if not bool(torch.isfinite(self.sum).all()):
            raise MethodError(
                f"the statistic of layer {self.layer} holds values that are not finite; collect it again, in float32 "
                "if the model is in half precision"
            )
        if self.trace <= 0:
            raise MethodError(f"the statistic of layer {self.layer} is zero; check the corpus it was taken from")

    @classmethod
    def from_sum(cls, layer: int, total: Tensor, count: int, record: Mapping[str, Any] | None = None) -> Statistic:
        """From a float64 sum; symmetrised and cast as it is stored."""
        return cls(layer, ((total + total.T) / 2).to(torch.float32).cpu().contiguous(), count, dict(record or {}))

    @property
    def width(self) -> int:
        """Number of keys' components, m."""
        return int(self.sum.shape[0])

    @property
    def matrix(self) -> Tensor:
        """``C``: ``[in, in]`` float64, symmetric."""
        return mean_of(self.sum, self.count)

    @property
    def trace(self) -> float:
        """Mean squared norm of the keys."""
        return float(self.sum.diagonal().to(torch.float64).sum()) / self.count

    @property
    def dead(self) -> int:
        """Units that (nearly) no token of the corpus makes active."""
        diagonal = self.sum.diagonal().to(torch.float64) / self.count
        return int((diagonal < _DEAD * self.trace / self.width).sum())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the numbers alone: what an edit stood on, wherever the file came from."""
        data = self.sum.contiguous().numpy().astype("<f4").tobytes()
        return hashlib.sha256(self.count.to_bytes(8, "little") + data).hexdigest()

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """What is kept with the statistic under ``key``, made on first use; it must follow from the numbers and key."""
        if key not in self._memory:
            self._memory[key] = make()
        return cast(T, self._memory[key])

    def factorised(
        self, ridge: float = 0.0, *, device: torch.device | str | None = None, cache: Path | None = None
    ) -> Factorised:
        """C as a Cholesky factor, made once for each ridge and device, and kept.

        Where C cannot be factorised as it is, the ridge grows from 1e-7 of the mean diagonal, tenfold each time, until
        it can; what was needed is in the result. Raises MethodError when 1e-2 is not enough.

        Args:
            ridge: what is added to the diagonal, as a share of its mean (see :meth:`share`).
            device: where the factor is made and what is solved with it happens; the CPU when None.
            cache: the cache folder, where factors of wide statistics are kept between runs.
        """
        where = solving_device(device)
        return self.remember(("factor", ridge, where), lambda: _factorised(self, ridge, where, cache))

    def share(self, amount: float) -> float:
        """An amount on the diagonal of C as a share of the mean diagonal: what ``ridge`` is given in."""
        return amount * self.width / self.trace

    def eigen(self, *, device: torch.device | str | None = None, cache: Path | None = None) -> tuple[Tensor, Tensor]:
        """Eigenvalues of C, ascending ``[in]``, and eigenvectors as columns ``[in, in]``; float64, on ``device``.

        Kept in memory for narrow statistics, in the cache folder for wide ones. Raises MethodError when they cannot be
        found.
        """
        where = solving_device(device)

        def make() -> Mapping[str, Tensor]:
            return _eigen(self, where)

        def read() -> tuple[Tensor, Tensor]:
            found = derived(cache, self, f"eigen-{where.type}", make)
            return found["values"].to(where), found["vectors"].to(where)

        return self.remember(("eigen", where), read) if self.width < DISK_FROM else read()

    def solve(self, right: Tensor, ridge: float = 0.0) -> Tensor:
        """``C^-1 right`` by the cached factor: ``[in, n] -> [in, n]`` float64, on the device of ``right``."""
        return self.factorised(ridge).solve(right)

    def multiply(self, right: Tensor) -> Tensor:
        """``C right``: ``[in, n] -> [in, n]`` float64, on the device of ``right``."""
        return mean_times(self.sum, self.count, right.to(device=self.sum.device, dtype=torch.float64)).to(right.device)

    def spread(self, vector: Tensor) -> float:
        """``sqrt(v^T C v)`` for ``[in]``: how large ``v . k`` is for the keys of ordinary text (root mean square)."""
        wide = vector.to(device=self.sum.device, dtype=torch.float64)
        # in the sum's own dtype first: a float64 copy of a wide statistic would take gigabytes for one product
        return math.sqrt(max(float((self.sum @ wide.to(self.sum.dtype)).double() @ wide), 0.0) / self.count)

    def summary(self) -> dict[str, Any]:
        """What people want to know of it, JSON-able; eigenvalues only up to width 4096. Worked out once."""
        return dict(self.remember("summary", self._summary))

    def summarised(self) -> Statistic:
        """The same with its :meth:`summary` in the record: how a statistic is saved."""
        made = evolve(self, record={**self.record, _SUMMARY: self.summary()})
        made._memory.update(self._memory)  # the numbers are the same
        return made

    def _summary(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "layer": self.layer,
            "width": self.width,
            "tokens": self.count,
            "tokens_per_width": self.count / self.width,
            "mean_squared_key_norm": self.trace,
            "dead_units": self.dead,
            "lambda_min": None,
            "lambda_max": None,
            "rank_1e-6": None,
        }
        if self.width <= _SPECTRUM_UP_TO:
            values = torch.linalg.eigvalsh(self.matrix)
            facts["lambda_min"], facts["lambda_max"] = float(values[0]), float(values[-1])
            facts["rank_1e-6"] = int((values > 1e-6 * values[-1]).sum())
        return facts


def merged(parts: list[Statistic]) -> Statistic:
    """One statistic of several parts of a corpus (shards, other runs) of the same layer: sums and counts add up."""
    first = parts[0]
    total = torch.stack([part.sum.to(torch.float64) for part in parts]).sum(0)
    record = {name: value for name, value in first.record.items() if name != _SUMMARY}
    return Statistic.from_sum(first.layer, total, sum(part.count for part in parts), record)


def _factorised(statistic: Statistic, asked: float, device: torch.device, cache: Path | None) -> Factorised:
    name = f"cholesky-{asked!r}-{device.type}"
    found = derived(cache, statistic, name, lambda: _cholesky(statistic, asked, device))
    return Factorised(
        found["lower"].to(device), float(found["ridge"]), asked, statistic.sum.to(device), statistic.count
    )


def _cholesky(statistic: Statistic, asked: float, device: torch.device) -> Mapping[str, Tensor]:
    """``lower`` and the ``ridge`` that it took."""
    matrix = mean_of(statistic.sum.to(device), statistic.count)
    unit = statistic.trace / statistic.width
    added = 0.0
    for ridge in (asked, *(step for step in _RIDGES if step > asked)):
        matrix.diagonal().add_((ridge - added) * unit)
        added = ridge
        lower, failed = torch.linalg.cholesky_ex(matrix)
        if not int(failed):
            return {"lower": lower, "ridge": torch.tensor(ridge, dtype=torch.float64)}
    raise MethodError(
        f"the statistic of layer {statistic.layer} ({statistic.count} tokens, width {statistic.width}) is "
        f"singular even with {added:g} of its mean diagonal added; give a larger corpus (--corpus, --stats)"
    )


def _eigen(statistic: Statistic, device: torch.device) -> Mapping[str, Tensor]:
    try:
        values, vectors = torch.linalg.eigh(mean_of(statistic.sum.to(device), statistic.count))
    except LinAlgError as error:
        raise MethodError(
            f"the eigenvectors of the statistic of layer {statistic.layer} could not be found ({error}); collect it "
            "again from a larger corpus (--corpus)"
        ) from error
    return {"values": values, "vectors": vectors}
