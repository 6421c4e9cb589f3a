"""How the value search moves: Adam and the clamp row by row, PMET's schedule, and the log of what each pass gave.

All of it stays on the device of the vectors; the host looks only when :meth:`Log.read` is called.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.errors import MethodError

_BETAS = (0.9, 0.999)
_EPS = 1e-8
_EASED = 0.1  # of the factor, once the target is said


class RowAdam:
    """Adam on the rows of a tensor, of which some are left alone. Same arithmetic as ``torch.optim.Adam``."""

    def __init__(self, like: Tensor, lr: float) -> None:
        self.lr = lr
        self.mean = torch.zeros_like(like)
        self.square = torch.zeros_like(like)
        self.steps = 0

    def step(self, values: Tensor, gradient: Tensor, active: Tensor) -> Tensor:
        """``values`` ``[R, ...]`` after a step of the ``active`` ``[R]`` rows; the others and their moments stay."""
        self.steps += 1
        first, second = _BETAS
        self.mean = choose(active, self.mean.lerp(gradient, 1 - first), self.mean)
        self.square = choose(active, self.square * second + gradient.square() * (1 - second), self.square)
        scale = (self.square.sqrt() / (1 - second**self.steps) ** 0.5).add_(_EPS)
        moved = values - self.lr / (1 - first**self.steps) * self.mean / scale
        return choose(active, moved, values)

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows only."""
        self.mean, self.square = self.mean[rows], self.square[rows]


def choose(active: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``new`` ``[R, ...]`` in the ``active`` ``[R]`` rows, ``old`` in the others."""
    return torch.where(active.view(-1, *[1] * (new.dim() - 1)), new, old)


def norm(vectors: Tensor) -> Tensor:
    """Lengths ``[...]`` of vectors ``[..., width]``."""
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return norms


def clamped(vectors: Tensor, limit: Tensor) -> Tensor:
    """Vectors ``[..., width]`` longer than ``limit`` ``[...]`` scaled to it; Adam's moments are not touched by this."""
    norms = norm(vectors)
    return torch.where((norms > limit)[..., None], vectors * (limit / norms)[..., None], vectors)


@frozen
class GreedySchedule:
    """PMET's control flow (Li et al. 2024, the authors' code; specification: PMET, section 2, step 2).

    Once every token of the target is the most likely one in every context, its likelihood counts for a tenth from the
    next pass on, and the request is done if the essence has hardly moved; as soon as one is not, it counts fully again.

    Attributes:
        factor: weight of the target's likelihood.
        kl_stop: the largest essence term, its weight included, with which a request may be done.
    """

    factor: float
    kl_stop: float

    def judge(self, greedy: Tensor, kl: Tensor) -> tuple[Tensor, Tensor]:
        """The next factor ``[R]`` and which requests are done ``[R]``, from the greedy test ``[R]`` and the essence
        terms ``[R]`` of a pass."""
        factor = torch.full_like(kl, self.factor).masked_fill(greedy, _EASED * self.factor)
        return factor, greedy & (kl <= self.kl_stop)


class Log:
    """Loss and factor of every forward pass of R requests.

    Attributes:
        losses: per request, the total losses that :meth:`read` has fetched.
        factors: per request, the factors they were computed with.
    """

    def __init__(self, requests: int) -> None:
        self.losses: list[list[float]] = [[] for _ in range(requests)]
        self.factors: list[list[float]] = [[] for _ in range(requests)]
        self._passes: list[Tensor] = []

    def note(self, total: Tensor, factor: Tensor, active: Tensor) -> None:
        """Keep what a pass over some requests gave the ``active`` ones: all ``[held]``, no wait for the device."""
        self._passes.append(torch.stack([total, factor, active.to(total)]))

    def read(self, held: Sequence[int]) -> None:
        """Fetch all passes since the last time; ``held`` are the requests they were over.

        Raises MethodError when a loss is not finite.
        """
        passes = torch.stack(self._passes).double().tolist()
        self._passes.clear()
        for totals, factors, active in passes:
            for request, total, factor, counts in zip(held, totals, factors, active, strict=True):
                if not counts:
                    continue
                self.losses[request].append(total)
                self.factors[request].append(factor)
                if not abs(total) < float("inf"):
                    raise MethodError(
                        f"the value search's loss is {total} after {len(self.losses[request]) - 1} steps; lower v_lr, "
                        "set clamp_norm_factor, or run the model in float32 or bfloat16"
                    )
