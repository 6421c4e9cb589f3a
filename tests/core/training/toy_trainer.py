"""A trainer whose every moving part is simple enough to know by hand: a vector is pulled to drawn points.

It has all that real ones have: parameters with rates of their own, one that no loss reaches, running statistics that
all processes must share, a margin that validations move, and random numbers in every draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.training import BaseTrainer, Loop, Processes, Stepped, TrainingHyperParams
from kedit_core.training.metrics import Metrics
from kedit_core.training.store import Store

POINTS = torch.randn(41, 3, generator=torch.Generator().manual_seed(0)) + 2
RATE, ALPHA_RATE = 0.05, 0.002


@frozen(kw_only=True)
class ToyHyperParams(TrainingHyperParams):
    iterations: int = 40
    batch_size: int = 4
    accumulate: int = 3
    lr: float = RATE
    val_interval: int = 10
    save_interval: int = 7
    log_interval: int = 5
    patience: int = 1000
    optimizer: str = "adam"
    normalises: bool = True
    COMPAT: ClassVar[Mapping[str, bool]] = {"published": True, "half": False}


class Toy(BaseTrainer[Tensor]):
    """``poison``: numbers of calls of run_step whose loss is not a number; ``explode``: whose gradient is not."""

    hparams: ToyHyperParams

    def __init__(
        self, context: Any, hparams: ToyHyperParams, poison: Sequence[int] = (), explode: Sequence[int] = ()
    ) -> None:
        super().__init__(context, hparams)
        self.count = len(POINTS)
        self.held = {
            "at": torch.zeros(3, requires_grad=True),
            "unused": torch.ones(2, requires_grad=True),
            "alpha": torch.full((1,), 0.5, requires_grad=True),
        }
        self.statistics = {"count": torch.zeros(1), "mean": torch.zeros(3), "m2": torch.zeros(3)}
        self.margin, self.calls, self.updates = 1.0, 0, 0
        self.poison, self.explode = set(poison), set(explode)

    def draw(self, indices: Sequence[int], generator: torch.Generator) -> Tensor:
        return POINTS[list(indices)] + 0.1 * torch.randn(len(indices), 3, generator=generator)

    def validation(self) -> list[Tensor]:
        return [POINTS[:5], POINTS[5:8], POINTS[8:9]]

    def parameters(self) -> Mapping[str, Tensor]:
        return self.held

    def rates(self) -> Mapping[str, float]:
        return {"alpha": ALPHA_RATE}

    def buffers(self) -> Mapping[str, Tensor]:
        return self.statistics

    def state(self) -> Mapping[str, Any]:
        return {"margin": self.margin, "updates": self.updates}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.margin, self.updates = state["margin"], state["updates"]

    def run_step(self, batch: Tensor) -> Stepped:
        if torch.is_grad_enabled():
            self.calls += 1
            batch = batch * math.nan if self.calls in self.poison else batch
            self._observe(batch)
        shift = 0.1 * self.statistics["mean"] * self.margin * self.hparams.normalises
        pull = (self.held["at"] - batch - shift).square().mean()
        if torch.is_grad_enabled() and self.calls in self.explode:
            pull = pull + torch.sqrt(self.held["at"].sum() * 0.0)
        total = pull + self.held["alpha"].square().sum()
        value = float(pull.detach())
        return Stepped(
            total=total,
            losses={"pull": pull},
            values={"loss/total": (value * len(batch), float(len(batch))), "nll/pull": (value, 1.0)},
        )

    def _observe(self, batch: Tensor) -> None:
        """Chan's merge of every process's rows, in their order."""
        for rows in self.gather(batch):
            count, mean = float(len(rows)), rows.mean(0)
            old, whole = self.statistics["count"].clone(), self.statistics["count"] + count
            apart = mean - self.statistics["mean"]
            self.statistics["m2"] += (rows - mean).square().sum(0) + apart.square() * old * count / whole
            self.statistics["mean"] += apart * count / whole
            self.statistics["count"].copy_(whole)

    def after_update(self) -> None:
        self.updates += 1
        with torch.no_grad():
            self.held["alpha"].clamp_(min=0.1)

    def after_validation(self, values: Mapping[str, float]) -> None:
        self.margin *= 0.9

    def optimizer(self, groups: Iterable[dict[str, Any]]) -> torch.optim.Optimizer:
        if self.hparams.optimizer == "rmsprop":
            return torch.optim.RMSprop(groups, centered=True)
        return super().optimizer(groups)

    def scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler | None:
        if self.hparams.optimizer == "rmsprop":
            return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 5))
        return None

    def editor(self) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        return {**self.held, **self.statistics}, {"margin": self.margin}


def a_toy(
    processes: Processes | None = None, poison: Sequence[int] = (), explode: Sequence[int] = (), **settings: Any
) -> Toy:
    """A toy trainer, without model and data."""
    context = SimpleNamespace(processes=processes or Processes(), seed=3)
    return Toy(context, ToyHyperParams.from_dict(settings), poison, explode)


def a_loop(folder: Path, toy: Toy, **more: Any) -> Loop[Tensor]:
    """Its loop, with checkpoints in ``folder``."""
    processes = toy.context.processes
    store = Store(folder)
    store.begin(anew=False)
    metrics = Metrics(folder if processes.first else None)
    identity = more.pop("identity", {"data": "points", "hparams": toy.hparams.lasting()})
    return Loop(toy, store, identity, seed=3, processes=processes, metrics=metrics, **more)


def moved(toy: Toy) -> list[Tensor]:
    """All that a training of it changes."""
    return [tensor.detach().clone() for tensor in (*toy.held.values(), *toy.statistics.values())]


def equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether they are, to the bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
