"""A training loop for editors: accumulation, clipping, validation, early stop, best and last checkpoints, resuming.

It knows nothing of any method. A method gives its parameters, a function from record indices to a micro-batch, and a
step function from a micro-batch to losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from attrs import define, field, frozen
from torch import Tensor

from kedit_core.editing.progress import Progress, silent
from kedit_core.errors import InputError, MethodError
from kedit_methods_memory.serac.training.sampler import Sampler
from kedit_methods_memory.serac.training.store import Store

B = TypeVar("B")
_HISTORY = 10_000  # validations that are kept


@frozen(eq=False, kw_only=True)
class Stepped:
    """What a step function gives.

    Attributes:
        total: the loss, a scalar with a graph while gradients are enabled.
        losses: its parts; one that is not finite makes the loop leave the micro-batch out.
        values: name -> (sum, weight): measurements, averaged over many steps by their weights.
    """

    total: Tensor
    losses: Mapping[str, Tensor]
    values: Mapping[str, tuple[float, float]] = field(factory=dict)


@frozen(kw_only=True)
class Schedule:
    """How long, and how often what is done; all counted in micro-batches.

    Attributes:
        accumulate: micro-batches of an optimiser step, whose gradients are averaged.
        clip: bound of their global norm.
        key: the validation value that decides, the smaller the better.
    """

    iterations: int
    accumulate: int = 10
    clip: float = 100.0
    val_interval: int = 5000
    patience: int = 40_000
    save_interval: int = 5000
    key: str = "loss/total"


@frozen(kw_only=True)
class Outcome:
    """How a training went.

    Attributes:
        iterations: micro-batches that were taken in all. best_iteration, best: where the key was smallest.
        stopped_early: by patience. skipped: micro-batches left out because a loss was not finite.
        history: each validation's values, with its ``iteration``.
    """

    iterations: int
    best_iteration: int
    best: float
    stopped_early: bool
    skipped: int
    history: tuple[Mapping[str, float], ...]


@define(eq=False)
class _Best:
    value: float = math.inf
    iteration: int = 0


class Loop(Generic[B]):
    """Trains named parameters in place, and leaves the best of them there.

    Args:
        parameters: name -> tensor; nothing else gets gradients, and no ``.grad`` is written.
        rates: name -> learning rate, of Adam without weight decay.
        step: gives losses of a micro-batch; called with gradients enabled, or disabled for validation.
        draw: makes the micro-batch of some records; all that is random comes from the generator.
        sampler: which records.
        validation: micro-batches to validate on, always the same.
        store: where checkpoints go.
        identity: what a run must share with one that it resumes (settings, digests of data and models): JSON.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        rates: Mapping[str, float],
        step: Callable[[B], Stepped],
        draw: Callable[[Sequence[int], torch.Generator], B],
        sampler: Sampler,
        validation: Sequence[B],
        schedule: Schedule,
        store: Store,
        identity: Mapping[str, Any],
        progress: Progress = silent,
    ) -> None:
        self.parameters, self.schedule, self.sampler = dict(parameters), schedule, sampler
        self._step, self._draw, self._validation = step, draw, list(validation)
        self._store, self._identity, self._progress = store, dict(identity), progress
        groups = [{"params": [tensor], "lr": rates[name]} for name, tensor in self.parameters.items()]
        self.optimizer = torch.optim.Adam(groups)
        self.iteration = self.skipped = 0
        self._best = _Best()
        self._sums: dict[str, Tensor] = {}
        self._history: list[dict[str, float]] = []

    # ------------------------------------------------------------------ running
    def run(self) -> Outcome:
        """Train to the end of the schedule, or until patience is out; the parameters are then the best ones.

        Raises MethodError when gradients are not finite.
        """
        stopped = self._impatient()
        with self._progress("training", total=self.schedule.iterations) as shown:
            shown.advance(self.iteration)
            while self.iteration < self.schedule.iterations and not stopped:
                self.advance()
                last = self.iteration == self.schedule.iterations
                if last or self.iteration % self.schedule.val_interval == 0:
                    self.validate()
                    stopped = self._impatient()
                if last or stopped or self.iteration % self.schedule.save_interval == 0:
                    self.save()
                shown.advance()
                shown.describe(f"training, best {self.schedule.key} {self._best.value:.4g}")
        self._put(self._store.best())
        return Outcome(
            iterations=self.iteration,
            best_iteration=self._best.iteration,
            best=self._best.value,
            stopped_early=stopped,
            skipped=self.skipped,
            history=tuple(self._history),
        )

    def advance(self) -> None:
        """One micro-batch; an optimiser step when enough of them are there."""
        batch = self._draw(*self.sampler.next())
        with torch.enable_grad():
            stepped = self._step(batch)
            if all(bool(torch.isfinite(loss)) for loss in (stepped.total, *stepped.losses.values())):
                self._accumulate(stepped.total)
            else:
                self.skipped += 1
        self.iteration += 1
        if self.iteration % self.schedule.accumulate == 0:
            self._optimise()

    def validate(self) -> dict[str, float]:
        """Averages over the validation's micro-batches; kept as the best when they are."""
        sums: dict[str, list[float]] = {}
        with torch.no_grad():
            for batch in self._validation:
                for name, (total, weight) in self._step(batch).values.items():
                    held = sums.setdefault(name, [0.0, 0.0])
                    held[0] += total
                    held[1] += weight
        found = {name: total / weight for name, (total, weight) in sorted(sums.items()) if weight}
        if not math.isfinite(found.get(self.schedule.key, math.nan)):
            raise MethodError(f"the validation's {self.schedule.key} is not a number; lower the learning rate")
        self._history = [*self._history, {"iteration": float(self.iteration), **found}][-_HISTORY:]
        if found[self.schedule.key] < self._best.value:
            self._best = _Best(found[self.schedule.key], self.iteration)
            self._store.save_best(self.parameters, self.iteration)
            # whoever resumes must know of it: what was the best before is no longer there
            self.save()
        return found

    def _impatient(self) -> bool:
        return self.iteration - self._best.iteration >= self.schedule.patience

    def _accumulate(self, total: Tensor) -> None:
        names = list(self.parameters)
        grads = torch.autograd.grad(total, [self.parameters[name] for name in names], allow_unused=True)
        for name, grad in zip(names, grads, strict=True):
            if grad is not None:
                held = self._sums.get(name)
                self._sums[name] = grad / self.schedule.accumulate + (0 if held is None else held)

    def _optimise(self) -> None:
        if not self._sums:
            return
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g).cpu() for g in self._sums.values()]))
        if not bool(torch.isfinite(norm)):
            raise MethodError(f"gradients are not finite at iteration {self.iteration}; lower the learning rate")
        shrink = min(1.0, self.schedule.clip / (float(norm) + 1e-6))
        with self._gradients(shrink):
            self.optimizer.step()
        self._sums = {}

    @contextmanager
    def _gradients(self, shrink: float) -> Iterator[None]:
        """The accumulated gradients where the optimiser looks for them; nothing there afterwards."""
        try:
            for name, grad in self._sums.items():
                self.parameters[name].grad = grad * shrink
            yield
        finally:
            for name in self._sums:
                self.parameters[name].grad = None

    # ------------------------------------------------------------------ checkpoints
    def save(self) -> None:
        """Write all that is needed to go on from here."""
        tensors = {f"parameter.{name}": tensor for name, tensor in self.parameters.items()}
        tensors |= {f"gradient.{name}": tensor for name, tensor in self._sums.items()}
        for name, tensor in self.parameters.items():
            tensors |= {f"adam.{key}.{name}": value for key, value in self.optimizer.state.get(tensor, {}).items()}
        sampler, generator = self.sampler.state()
        state = {
            "identity": self._identity,
            "iteration": self.iteration,
            "skipped": self.skipped,
            "best": [self._best.value if math.isfinite(self._best.value) else None, self._best.iteration],
            "history": self._history,
            "sampler": sampler,
        }
        self._store.save_last({**tensors, "generator": generator}, state)

    def resume(self) -> None:
        """Go on from the last checkpoint.

        Raises InputError when there is none, or it is of a run with other settings, data or models.
        """
        tensors, state = self._store.last()
        was = state["identity"]
        if other := [name for name in {**was, **self._identity} if was.get(name) != self._identity.get(name)]:
            raise InputError(
                f"the training to resume differs in {', '.join(sorted(other))}; start anew, or give what it was given"
            )
        self._put({name.removeprefix("parameter."): t for name, t in tensors.items() if name.startswith("parameter.")})
        self._sums = {}
        for name, parameter in self.parameters.items():
            held = {key: tensors.get(f"adam.{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
            if held["step"] is not None:
                # Adam keeps its step count on the CPU
                self.optimizer.state[parameter] = {
                    key: value.clone() if key == "step" else value.to(parameter.device)
                    for key, value in held.items()
                    if value is not None
                }
            if (grad := tensors.get(f"gradient.{name}")) is not None:
                self._sums[name] = grad.to(parameter.device)
        self.iteration, self.skipped = state["iteration"], state["skipped"]
        best, at = state["best"]
        self._best = _Best(math.inf if best is None else best, at)
        self._history = [dict(each) for each in state["history"]]
        self.sampler.restore(state["sampler"], tensors["generator"])

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])
