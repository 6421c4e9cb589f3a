"""The face of a method towards the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from attrs import field, frozen
from torch import Tensor

from kedit_core.training.context import TrainingContext
from kedit_core.training.settings import TrainingHyperParams

B = TypeVar("B")


@frozen(eq=False, kw_only=True)
class Stepped:
    """What one micro-batch gave.

    Attributes:
        total: the loss, a scalar; with a graph while training, unless ``gradients`` are given.
        losses: its parts; when one of them or a gradient is not finite, the micro-batch is left out and counted.
        values: name -> (sum, weight): measurements, averaged over many steps as sum of sums by sum of weights. Names
            that begin with ``nll/`` (weighted by tokens) are also shown as ``perplexity/...``.
        gradients: parameter name -> gradient, of a method that makes them itself; those left out have none.
    """

    total: Tensor
    losses: Mapping[str, Tensor]
    values: Mapping[str, tuple[float, float]] = field(factory=dict)
    gradients: Mapping[str, Tensor] | None = None


class BaseTrainer(ABC, Generic[B]):
    """What a method gives so that its editor can be trained; ``B`` is its kind of micro-batch.

    The loop asks for micro-batches (:meth:`draw`), runs :meth:`run_step`, averages the gradients of :meth:`parameters`
    over ``accumulate`` micro-batches and all processes, clips them, and lets the optimiser step. It validates with
    :meth:`validate_step`, writes checkpoints, stops early, and puts the best parameters back at the end. A trainer
    keeps nothing that changes from step to step outside :meth:`parameters`, :meth:`buffers` and :meth:`state`: these
    are what a resumed training gets back, bit for bit.

    Made by the hook ``make_trainer`` once the base is frozen and in eval mode; whatever can be refused (records that
    are too long, settings that do not suit the model) is refused here, with an InputError.

    Attributes:
        count: how many records there are to sample from.
        keeps_incomplete: whether the records left over at an epoch's end, fewer than a micro-batch, make one too.
    """

    keeps_incomplete: ClassVar[bool] = False
    count: int

    def __init__(self, context: TrainingContext, hparams: TrainingHyperParams) -> None:
        self.context = context
        self.hparams = hparams

    # ------------------------------------------------------------------ data
    @abstractmethod
    def draw(self, indices: Sequence[int], generator: torch.Generator) -> B:
        """The micro-batch of these records (indices below :attr:`count`, all different).

        All that is random comes from ``generator``, which is seeded anew for every micro-batch of the whole training,
        whatever the number of processes. Must not communicate with other processes.
        """

    @abstractmethod
    def validation(self) -> Sequence[B]:
        """The micro-batches to validate on, always the same; called once, on every process. One at least."""

    # ------------------------------------------------------------------ what is trained
    @abstractmethod
    def parameters(self) -> Mapping[str, Tensor]:
        """name -> leaf that asks for gradients, in float32 (or float64) whatever the base's dtype; written in place.

        Always the same tensors, in the same order. The loop writes no ``.grad`` that is still there between steps.
        """

    def rates(self) -> Mapping[str, float]:
        """name -> learning rate, for those of :meth:`parameters` whose rate is not ``hparams.lr``."""
        return {}

    def buffers(self) -> Mapping[str, Tensor]:
        """name -> tensor that training changes without gradients (running statistics), written in place.

        Always the same tensors, of fixed shape, and equal on all processes after each step (:meth:`gather`). They are
        put back when a micro-batch is left out, kept with the best parameters, and restored on resuming.
        """
        return {}

    def state(self) -> Mapping[str, Any]:
        """JSON that a resumed training must get back (margins, multipliers' caps), the same on all processes."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state` gave."""

    # ------------------------------------------------------------------ steps
    @abstractmethod
    def run_step(self, batch: B) -> Stepped:
        """Losses of a micro-batch. Called with gradients enabled.

        May communicate (:meth:`gather`), if every process does so in the same order whatever its data.
        """

    def validate_step(self, batch: B) -> Stepped:
        """Losses and measurements of a micro-batch of :meth:`validation`; called with gradients disabled.

        By default :meth:`run_step`. Statistics must not change here, and processes must not communicate (they may have
        different numbers of batches); an editor that needs the base's gradients enables them itself.
        """
        return self.run_step(batch)

    def after_update(self) -> None:
        """Called after every optimiser step (to clamp what must stay in bounds), on every process."""

    def after_validation(self, values: Mapping[str, float]) -> None:
        """Called after every validation with its values, on every process; the best have been saved by then."""

    # ------------------------------------------------------------------ optimisation
    def optimizer(self, groups: Iterable[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser of parameter groups ``{"params": [tensor], "lr": rate, "name": name}``.

        Adam without weight decay by default. Its state must be tensors and numbers.
        """
        return torch.optim.Adam(groups)

    def scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler | None:
        """A schedule that is stepped after every optimiser step; none by default. Its state must be JSON."""
        return None

    # ------------------------------------------------------------------ what comes out
    @abstractmethod
    def editor(self) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """What edits need: tensors (``editor.safetensors``) and JSON (``config`` of state.json); the best are in place.

        No path and no clock may be in it: equal trainings make equal editors.
        """

    def write_files(self, folder: Path) -> None:
        """Write what else an editor needs (tokenizers, whole models) into a folder; nothing by default."""

    def origin(self) -> Mapping[str, Any]:
        """JSON of what the editor is made from beside base, data and settings: digests of models it started from.

        Goes to state.json; a training is resumed only where it is the same. Called before the first step.
        """
        return {}

    # ------------------------------------------------------------------ several processes
    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors ``[n, ...]`` of all processes in rank order, for statistics that must be equal everywhere.

        ``n`` may differ between processes. One process gets its own back. Merge in this order, on every process.
        """
        return self.context.processes.gather(tensor)

    def agree(self, flag: bool) -> bool:
        """Whether ``flag`` is true on any process: the same answer on all."""
        return self.context.processes.any(flag)
