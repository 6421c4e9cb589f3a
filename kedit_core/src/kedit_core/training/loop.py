"""The loop that trains an editor: accumulation, clipping, validation, early stop, checkpoints, resuming."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch

from kedit_core.editing.progress import Progress, Step, silent
from kedit_core.errors import InputError, MethodError
from kedit_core.patches.digests import tensor_digest
from kedit_core.training.averages import Averages
from kedit_core.training.base import BaseTrainer
from kedit_core.training.checkpoint import editor_tensors, optimizer_state, put_editor, put_optimizer
from kedit_core.training.counters import Counters
from kedit_core.training.gradients import Gradients, all_finite, finite_losses, global_norm
from kedit_core.training.metrics import Metrics
from kedit_core.training.outcome import Outcome
from kedit_core.training.processes import Processes
from kedit_core.training.sampler import Sampler
from kedit_core.training.stopping import Stopping
from kedit_core.training.store import Store

B = TypeVar("B")
_HOPELESS = 100  # micro-batches left out one after the other


class Loop(Generic[B]):
    """Trains a trainer's parameters in place, and leaves the best of them there.

    Args:
        trainer: of the method; its ``hparams`` say how long and how often what is done.
        store: where checkpoints go.
        identity: what a run must share with one that it resumes (settings, digests of data and models): JSON.
        processes: those that train together, each with a loop of its own.
        metrics: where values are written.
        memory: bytes in use at most so far, over what was in use at the start.
    """

    def __init__(
        self,
        trainer: BaseTrainer[B],
        store: Store,
        identity: Mapping[str, Any],
        *,
        seed: int = 0,
        processes: Processes | None = None,
        metrics: Metrics | None = None,
        progress: Progress = silent,
        memory: Callable[[], int] = int,
    ) -> None:
        self.trainer, self.hparams = trainer, trainer.hparams
        self.processes = processes or Processes()
        self.parameters = _checked(trainer.parameters())
        rates = trainer.rates()
        groups = [
            {"params": [tensor], "lr": rates.get(name, self.hparams.lr), "name": name}
            for name, tensor in self.parameters.items()
        ]
        self.optimizer = trainer.optimizer(groups)
        self.scheduler = trainer.scheduler(self.optimizer)
        self.sampler = Sampler(
            trainer.count,
            self.hparams.batch_size,
            seed,
            keep_incomplete=trainer.keeps_incomplete,
            numpy_order=self.hparams.published_order,
        )
        self.gradients = Gradients(self.parameters, self.hparams.accumulate)
        self.stopping = Stopping.of(self.hparams)
        self.counters = Counters()
        self._validation = list(trainer.validation())
        if not self._validation:
            raise InputError("there is nothing to validate on; give at least one request to validate with")
        self._store, self._metrics, self._progress, self._memory = store, metrics or Metrics(None), progress, memory
        self._identity = {**identity, "processes": self.processes.count}
        self._lines = 0  # of measurements that the checkpoint knows of

    # ------------------------------------------------------------------ running
    def run(self) -> Outcome:
        """Train to the end of the schedule, or until patience is out; the parameters are then the best ones.

        Raises MethodError when the training cannot go on: gradients are not finite, or nothing can be measured.
        """
        self._check_alike()
        counters, hparams = self.counters, self.hparams
        self._metrics.begin(self._lines, counters.iteration)
        started = time.perf_counter() - counters.seconds
        # patience is looked at where a validation was, so nowhere else when resumed either
        stopped = counters.validated and self.stopping.out(counters.iteration)
        with self._progress("training", total=hparams.iterations) as shown:
            shown.advance(counters.iteration)
            while counters.iteration < hparams.iterations and not stopped:
                self.advance()
                counters.seconds = time.perf_counter() - started
                ended = counters.iteration == hparams.iterations
                if counters.iteration % hparams.log_interval == 0:
                    self._log()
                if counters.iteration % hparams.val_interval == 0:
                    self.validate()
                    stopped = self.processes.told(self.stopping.out(counters.iteration))
                    counters.seconds = time.perf_counter() - started
                if ended or stopped or counters.iteration % hparams.save_interval == 0:
                    self.save(finished=ended or stopped)
                self._show(shown)
        self._last_look(started)
        self._put_best()
        return self._outcome(stopped)

    def advance(self) -> None:
        """One micro-batch; an optimiser step when enough of them are there.

        Raises MethodError when gradients are not finite, or too many micro-batches had to be left out.
        """
        started = time.perf_counter()
        number = self.counters.iteration * self.processes.count + self.processes.rank
        batch = self.trainer.draw(*self.sampler.batch(number))
        before = {name: tensor.detach().clone() for name, tensor in self.trainer.buffers().items()}
        with torch.enable_grad():
            stepped = self.trainer.run_step(batch)
            found = self.gradients.of(stepped) if finite_losses(stepped) else {}
        if self.processes.any(not all_finite(stepped, found)):
            self._leave_out(before)
        else:
            self.gradients.add(found)
            self.counters.window.add(stepped.values)
            self.counters.in_row = 0
        self.counters.iteration += 1
        if self._due():
            self._optimise()
        self.counters.step_seconds += time.perf_counter() - started

    def validate(self) -> dict[str, float]:
        """Averages over the validation's micro-batches, shared by the processes; kept as the best when they are."""
        mine: dict[int, Mapping[str, tuple[float, float]]] = {}
        with torch.no_grad():
            for number in range(self.processes.rank, len(self._validation), self.processes.count):
                mine[number] = self.trainer.validate_step(self._validation[number]).values
        every = {number: values for part in self.processes.collect(mine) for number, values in part.items()}
        averages = Averages()
        for number in sorted(every):  # the same sums whatever the number of processes
            averages.add(every[number])
        found = averages.values()
        self._metrics.write("validation", self.counters.iteration, {**found, "seconds": self.counters.seconds})
        better = self.stopping.see(found, self.counters.iteration)
        self.counters.note(found)
        if better and self.processes.first:
            self._store.save_best(editor_tensors(self.trainer), dict(self.trainer.state()), self.counters.iteration)
        self.trainer.after_validation(found)
        return found

    def _last_look(self, started: float) -> None:
        """Measure the end where it is between two intervals.

        The last checkpoint knows nothing of it, so that a longer training that goes on from there is as if it had not
        ended.
        """
        if self.counters.iteration > self.hparams.iterations and self.stopping.best is not None:
            return  # fewer were asked for than had been taken: only the best is wanted
        if self.counters.iteration % self.hparams.log_interval:
            self._log()
        if not self.counters.validated:
            self.validate()
        self.counters.seconds = time.perf_counter() - started
        self.counters.peak = max(self.counters.peak, self._memory())

    def _due(self) -> bool:
        """Whether the optimiser is to step after this micro-batch."""
        late = int(self.hparams.published_order)  # the original's counter begins at 0, where it does not step
        taken = self.counters.iteration - late
        return taken > 0 and taken % self.hparams.accumulate == 0

    def _optimise(self) -> None:
        found = self.gradients.averaged(self.processes)
        if not found:
            return
        self.counters.norm = global_norm(found)
        if not math.isfinite(self.counters.norm):
            raise MethodError(
                f"gradients are not finite at iteration {self.counters.iteration}; lower the learning rate"
            )
        shrink = min(1.0, self.hparams.clip / (self.counters.norm + 1e-6))
        with self.gradients.given({name: grad * shrink for name, grad in found.items()}):
            self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.counters.updates += 1
        self.trainer.after_update()

    def _leave_out(self, buffers: Mapping[str, torch.Tensor]) -> None:
        self.counters.skipped += 1
        self.counters.in_row += 1
        with torch.no_grad():
            for name, tensor in self.trainer.buffers().items():
                tensor.copy_(buffers[name])
        if self.counters.in_row >= _HOPELESS:
            raise MethodError(
                f"the last {_HOPELESS} micro-batches up to iteration {self.counters.iteration + 1} gave losses or "
                "gradients that are not finite; lower the learning rate, or look into the data"
            )

    def _log(self) -> None:
        together = Averages()
        for part in self.processes.collect(self.counters.window.sums()):
            together.merge(Averages(part))
        rate = float(self.optimizer.param_groups[0]["lr"])
        more = {
            "gradient_norm": self.counters.norm,
            "lr": rate,
            "skipped": float(self.counters.skipped),
            "seconds": self.counters.seconds,
            "memory": float(max(self.counters.peak, self._memory())),
        }
        self._metrics.write("training", self.counters.iteration, {**together.values(), **more})
        self.counters.window = Averages()

    def _show(self, shown: Step) -> None:
        shown.advance()
        best = self.stopping.best
        shown.describe("training" if best is None else f"training, best {self.stopping.key} {best:.4g}")

    def _check_alike(self) -> None:
        """Refuse processes that hold other parameters than the first one."""
        digests = [tensor_digest(tensor) for tensor in self.parameters.values()] if self.processes.count > 1 else []
        if any(each != digests for each in self.processes.collect(digests)):
            raise MethodError(
                "the processes began with other parameters; the trainer's author must draw them from context.seed"
            )

    def _outcome(self, stopped: bool) -> Outcome:
        return Outcome(
            iterations=self.counters.iteration,
            updates=self.counters.updates,
            best_iteration=self.stopping.iteration,
            best=math.nan if self.stopping.best is None else self.stopping.best,
            stopped_early=stopped,
            skipped=self.counters.skipped,
            history=tuple(self.counters.history),
            seconds=self.counters.seconds,
            step_seconds=self.counters.step_seconds,
            peak_bytes=self.counters.peak,
        )

    # ------------------------------------------------------------------ checkpoints
    def save(self, *, finished: bool = False) -> None:
        """Write all that is needed to go on from here; collective."""
        self.counters.peak = max(self.counters.peak, self._memory())
        waiting = self.processes.collect(self.gradients.waiting)
        windows = self.processes.collect(self.counters.window.sums())
        tensors, optimizer = optimizer_state(self.optimizer, self.parameters)
        if any(waiting):
            flats = self.processes.gather(self.gradients.pending())
            tensors |= {f"pending.{rank}": flat for rank, flat in enumerate(flats)}
        if self.processes.first:
            best = self.stopping.best
            state = {
                "identity": self._identity,
                "counters": self.counters.to_json(),
                "windows": windows,
                "waiting": waiting,
                "best": None if best is None else {"value": best, "iteration": self.stopping.iteration},
                "optimizer": optimizer,
                "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
                "trainer": dict(self.trainer.state()),
                "lines": self._metrics.lines,
                "finished": finished,
            }
            self._store.save_last({**editor_tensors(self.trainer), **tensors}, state)
        self.processes.wait()

    def resume(self) -> None:
        """Go on from the last checkpoint, which every process must be able to read.

        Raises InputError when there is none, or it is of a run with other settings, data or models.
        """
        tensors, state = self._store.last()
        was = state["identity"]
        if other := [name for name in {**was, **self._identity} if was.get(name) != self._identity.get(name)]:
            raise InputError(
                f"the training to resume differs in {', '.join(sorted(other))}; start anew, or give what it was given"
            )
        put_editor(self.trainer, tensors)
        put_optimizer(self.optimizer, self.parameters, tensors, state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        rank = self.processes.rank
        if (flat := tensors.get(f"pending.{rank}")) is not None:
            self.gradients.restore(flat, state["waiting"][rank])
        self.trainer.load_state(state["trainer"])
        self.counters = Counters.from_json(state["counters"], state["windows"][rank])
        self._lines = int(state["lines"])
        if (best := state["best"]) is not None:
            self.stopping.best, self.stopping.iteration = best["value"], best["iteration"]

    def _put_best(self) -> None:
        tensors, state = self._store.best(self.stopping.iteration)
        put_editor(self.trainer, tensors)
        self.trainer.load_state(state)


def _checked(parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parameters; MethodError for what cannot be trained."""
    if not parameters:
        raise MethodError("the trainer has no parameters, so there is nothing to train")
    for name, tensor in parameters.items():
        if tensor.dtype not in (torch.float32, torch.float64) or not tensor.requires_grad or not tensor.is_leaf:
            raise MethodError(
                f"the trainer's parameter {name} ({tensor.dtype}) cannot be trained; its author must give leaves in "
                "float32 that ask for gradients"
            )
    return dict(parameters)
