"""Training a MALMEN editor in two phases: through the model to the shifts, then through the nets to their parameters.

Tan et al. 2024 (arXiv 2311.04661), section 3.3. Neither graph holds the other, and each is of one micro-batch or one
chunk, so memory does not grow with the number of edits but for their keys and gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import torch
from attrs import define, field
from torch import Tensor

from kedit_core.errors import MethodError
from kedit_core.training import Stepped, TrainingContext
from kedit_core.training.losses import kl
from kedit_methods_meta.edit_training import Batch, EditTrainer
from kedit_methods_meta.edited import edited
from kedit_methods_meta.factors import Factors, pass_factors, weighted
from kedit_methods_meta.gathering import observe_everywhere
from kedit_methods_meta.hparams.malmen import MalmenTrainingHyperParams
from kedit_methods_meta.losses import Reading, measured
from kedit_methods_meta.malmen.editor import MalmenEditor
from kedit_methods_meta.malmen.reading import read
from kedit_methods_meta.malmen.solve import CLAMP, Normal
from kedit_methods_meta.malmen.spill import spill_folder
from kedit_methods_meta.questions import Questions, questions

Values: TypeAlias = dict[str, tuple[float, float]]


@define
class _Outcome:
    """What the edited model says: losses (sums of micro-batches' means), measurements, gradients of the shifts."""

    edit: float = 0.0
    locality: float = 0.0
    batches: int = 0
    values: Values = field(factory=dict)
    gradients: dict[str, Tensor] = field(factory=dict)

    def count(self, name: str, found: tuple[float, float]) -> None:
        before = self.values.get(name, (0.0, 0.0))
        self.values[name] = (before[0] + found[0], before[1] + found[1])

    def pull(self, factors: Mapping[str, Factors]) -> None:
        """Add the gradient ``Q [in, out]`` of each shift that one micro-batch's factors make."""
        for name, each in factors.items():
            gradient = each.inputs.T @ each.gradients
            self.gradients[name] = self.gradients[name] + gradient if name in self.gradients else gradient


class MalmenTrainer(EditTrainer):
    """Trains the nets, step sizes and ridges of a :class:`MalmenEditor`.

    Memory beside the base: the editor four times (its gradients, Adam's two moments), for all edits 4 in + 12 out bytes
    for each of their tokens and edited weight (8 out with the option ``spill``, which keeps keys and gradients in files
    of the folder it names), 12 in * out bytes for each edited weight, and the activations of a micro-batch.
    """

    hparams: MalmenTrainingHyperParams
    module: MalmenEditor
    keeps_incomplete = True

    def __init__(self, context: TrainingContext, hparams: MalmenTrainingHyperParams) -> None:
        self._spill = spill_folder(context.options)
        super().__init__(context, hparams, hparams.editor)

    def make_editor(self, generator: torch.Generator) -> MalmenEditor:
        return MalmenEditor(self.places, self.hparams.editor, self.hparams.eta, self.hparams.log_ridge, generator)

    def after_update(self) -> None:
        """Keep the ridges' logarithms where they have an effect, so that none drifts away for good."""
        with torch.no_grad():
            self.module.log_ridge.clamp_(-CLAMP, CLAMP)

    # ------------------------------------------------------------------ steps
    def step(self, batch: Batch, learning: bool) -> Stepped:
        factors = self._factors(batch)
        if learning:
            observe_everywhere(self, self.module.observed(factors))
        values = self.module.values(factors)
        solved = {name: self.module.normal(name, each.inputs) for name, each in factors.items()}
        shifts = {name: normal.shift(values[name]).T for name, normal in solved.items()}
        outcome = self._edited(batch, shifts, learning)
        total = torch.tensor(self.hparams.c_edit * outcome.edit + self.hparams.c_loc * outcome.locality)
        losses = {"edit": torch.tensor(outcome.edit), "loc": torch.tensor(outcome.locality)}
        mean = {name: loss / outcome.batches for name, loss in losses.items()}
        return Stepped(
            total=total,
            losses=losses,
            values=outcome.values | measured(total / outcome.batches, mean, len(batch)),
            gradients=self._gradients(factors, values, solved, outcome.gradients) if learning else None,
        )

    def _factors(self, batch: Batch) -> dict[str, Factors]:
        pairs = [self.pair(*example.inner) for example in batch]
        # what is not finite is seen in the losses, and the loop leaves such a micro-batch out
        return read(self.context.forward, pairs, self.places, self.hparams.editor, self._spill, check=False)

    # phase A: the model, with the nets' work as constants
    def _edited(self, batch: Batch, shifts: Mapping[str, Tensor], learning: bool) -> _Outcome:
        """Losses of the edited model and, in training, their gradients with respect to the shifts."""
        outcome = _Outcome()
        for start in range(0, len(batch), self.hparams.micro_batch):
            part = batch[start : start + self.hparams.micro_batch]
            outer = questions(self.context.forward, [self.pair(*each.outer) for each in part])
            locality = questions(self.context.forward, [self.pair(*each.locality) for each in part])
            base = self._logits(locality)
            share = torch.full((len(outer.row),), self.hparams.c_edit / len(outer.row), dtype=torch.float64)
            said = self._pass(outer, shifts, weighted(outer, share), outcome, learning)
            now = self._pass(locality, shifts, partial(_weighted_kl, base, self.hparams.c_loc), outcome, learning)
            read_outer = Reading.of(said, outer.tokens, outer.row)
            outcome.edit += -float(read_outer.logs.mean())
            outcome.locality += float(kl(base, now))
            outcome.batches += 1
            outcome.count("nll/edit", read_outer.surprise())
            outcome.count("edit/acc", read_outer.all_right())
            outcome.count("edit/prob", read_outer.probability())
            before, after = (Reading.of(each, locality.tokens, locality.row).all_right() for each in (base, now))
            outcome.count("acc/pre", before)
            outcome.count("acc/post", after)
        return outcome

    def _pass(
        self,
        asked: Questions,
        shifts: Mapping[str, Tensor],
        loss: Callable[[Tensor], Tensor],
        outcome: _Outcome,
        learning: bool,
    ) -> Tensor:
        """Logits under the shifts; in training their gradient is added to the outcome's."""
        seen: list[Tensor] = []
        with edited(self.context.forward, self.places, shifts):
            if not learning:
                return self._logits(asked)
            outcome.pull(pass_factors(self.context.forward, asked, self.places, loss, logits=seen.append))
        return seen[0]

    def _logits(self, asked: Questions) -> Tensor:
        found = self.context.forward.run(asked.batch, logits_at=asked.cells).logits
        if found is None:
            raise MethodError("the model gave no logits")
        return found

    # phase B: the nets, with the model's work as constants
    def _gradients(
        self,
        factors: Mapping[str, Factors],
        values: Mapping[str, Tensor],
        solved: Mapping[str, Normal],
        pulled: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Gradient of the loss with respect to every parameter, from those with respect to the shifts."""
        found = {name: torch.zeros_like(parameter) for name, parameter in self.parameters().items()}
        wanted = {}
        for name, normal in solved.items():
            gradient = pulled[name].to(values[name].device)
            wanted[name] = normal.pulled(gradient).to(values[name].dtype)
            found["log_ridge"][self.module.number(name)] = normal.pulled_ridge(gradient, values[name])
        learned = {name: parameter for name, parameter in self.parameters().items() if name != "log_ridge"}
        for chunk in self.module.chunks(factors):
            each = torch.autograd.grad(
                chunk.values, list(learned.values()), wanted[chunk.name][chunk.rows], allow_unused=True
            )
            for name, gradient in zip(learned, each, strict=True):
                if gradient is not None:
                    found[name] += gradient
        return found


def _weighted_kl(base: Tensor, weight: float, logits: Tensor) -> Tensor:
    return weight * kl(base, logits)
