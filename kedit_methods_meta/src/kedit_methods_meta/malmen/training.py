"""Training a MALMEN editor in two phases: through the model to the shifts, then through the nets to their parameters.

Tan et al. 2024 (arXiv 2311.04661), section 3.3. Neither graph holds the other, and each is of one micro-batch or one
chunk, so memory does not grow with the number of edits but for their keys and gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, TypeAlias

import torch
from attrs import define, field
from torch import Tensor

from kedit_core.errors import MethodError
from kedit_core.forward import Pair
from kedit_core.training import BaseTrainer, Stepped, TrainingContext
from kedit_core.training.losses import kl
from kedit_core.training.records import EditExample, Examples
from kedit_methods_meta.edited import edited
from kedit_methods_meta.factors import Factors, pass_factors, weighted
from kedit_methods_meta.gathering import observe_everywhere
from kedit_methods_meta.hparams.malmen import MalmenTrainingHyperParams
from kedit_methods_meta.losses import Reading, measured
from kedit_methods_meta.malmen.editor import MalmenEditor
from kedit_methods_meta.malmen.reading import read
from kedit_methods_meta.malmen.solve import Normal
from kedit_methods_meta.pairs import check_records, pair_of
from kedit_methods_meta.places import places_of
from kedit_methods_meta.questions import Questions, questions

Batch: TypeAlias = tuple[EditExample, ...]
Values: TypeAlias = dict[str, tuple[float, float]]

_KEPT = 1 << 16  # texts whose ids are kept


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


class MalmenTrainer(BaseTrainer[Batch]):
    """Trains the nets, step sizes and ridges of a :class:`MalmenEditor`.

    Memory beside the base: the editor four times (its gradients, Adam's two moments), keys and gradients of all edits
    (8 (in + out) bytes for each of their tokens and edited weight), 12 in * out bytes for each edited weight, and the
    activations of a micro-batch.
    """

    hparams: MalmenTrainingHyperParams
    keeps_incomplete = True

    def __init__(self, context: TrainingContext, hparams: MalmenTrainingHyperParams) -> None:
        super().__init__(context, hparams)
        self.places = places_of(context.adapter, hparams.parts, hparams.layers, hparams.decoder_layers)
        self.examples = Examples(context.requests, hparams)
        self.count = self.examples.count
        self._validating = Examples(context.validation, hparams, unrelated=context.requests)
        self.pair = lru_cache(_KEPT)(self._pair)
        check_records(context, [*context.requests, *context.validation], self.pair)
        self.module = MalmenEditor(
            self.places,
            hparams.editor,
            hparams.eta,
            hparams.log_ridge,
            torch.Generator().manual_seed(context.seed),
        ).to(context.forward.device)

    # ------------------------------------------------------------------ data
    def draw(self, indices: Sequence[int], generator: torch.Generator) -> Batch:
        return self.examples.draw(indices, generator)

    def validation(self) -> Sequence[Batch]:
        return self._validating.batches(self.hparams.batch_size, self.hparams.val_items, self.context.seed)

    def _pair(self, prompt: str, answer: str) -> Pair:
        return pair_of(self.context.tokens, prompt, answer, self.hparams.append_eos)

    # ------------------------------------------------------------------ what is trained
    def parameters(self) -> Mapping[str, Tensor]:
        return dict(self.module.named_parameters())

    def buffers(self) -> Mapping[str, Tensor]:
        return dict(self.module.named_buffers())

    def editor(self) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        return self.module.tensors(), self.module.config()

    # ------------------------------------------------------------------ steps
    def run_step(self, batch: Batch) -> Stepped:
        return self._step(batch, learning=True)

    def validate_step(self, batch: Batch) -> Stepped:
        return self._step(batch, learning=False)

    def _step(self, batch: Batch, learning: bool) -> Stepped:
        factors = self._factors(batch)
        if learning:
            observe_everywhere(self, self.module.observed(factors))
        values = self.module.values(factors)
        solved = {name: self.module.normal(name, each.inputs.to(values[name].device)) for name, each in factors.items()}
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
        return read(self.context.forward, pairs, self.places, self.hparams.editor)

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
