"""SERAC's face towards the training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kedit_core.errors import InputError
from kedit_core.patches import model_digest
from kedit_core.training import BaseTrainer, Stepped, TrainingContext
from kedit_methods_memory.encoders import NGRAMS, load_encoder
from kedit_methods_memory.hparams.serac import SeracTrainingHyperParams
from kedit_methods_memory.serac.training.negatives import Neighbours
from kedit_methods_memory.serac.training.records import Drawing, Record, ScopeBatch, records_of
from kedit_methods_memory.serac.training.start import answering_tools, starting_editor
from kedit_methods_memory.serac.training.step import SeracStep


class SeracTrainer(BaseTrainer[ScopeBatch]):
    """Trains a scope classifier and a counterfactual model for a base.

    The base is not changed; with objective ``supervised`` it is not even run (unless it answers itself). Options of the
    context: ``classifier``, ``counterfactual`` (see :func:`starting_editor`) and ``encoder``, the encoder of texts that
    hard negatives are found by, in the folder of the resource ``encoder`` where it is not a built-in one.

    Memory: both models, twice over for Adam's state and once for gradients.

    Raises InputError for data and models that cannot be used.
    """

    hparams: SeracTrainingHyperParams

    def __init__(self, context: TrainingContext, hparams: SeracTrainingHyperParams) -> None:
        super().__init__(context, hparams)
        self._records = records_of(context.requests, hparams)
        self._judged = records_of(context.validation, hparams)
        if shared := sorted({record.id for record in self._records} & {record.id for record in self._judged}):
            raise InputError(f"the case {shared[0]!r} is in the training set and in the validation; take it out of one")
        self.count = len(self._records)
        self.device = context.forward.device
        self.made = starting_editor(context, hparams, self.device)
        models = {"classifier": model_digest(self.made.classifier.model)}
        if self.made.counterfactual is not None:
            models["counterfactual"] = model_digest(self.made.counterfactual.model)
        self._started_from = models
        self._step = SeracStep(self.made, answering_tools(context, self.made), context.forward, hparams)
        self._step.check_lengths([*self._records, *self._judged])
        self._parameters, self._rates = self._step.parameters(), self._step.rates()
        self._drawing = Drawing(self._records, hparams, self._neighbours())

    def draw(self, indices: Sequence[int], generator: torch.Generator) -> ScopeBatch:
        """These records with prompts in their scope and out of it."""
        return self._drawing.batch(indices, generator)

    def validation(self) -> Sequence[ScopeBatch]:
        """Held-out records; where they are of one case, prompts of the training set's records are out of scope."""
        judged, hparams = self._judged, self.hparams
        apart = len({record.id for record in judged}) > 1
        drawing = Drawing([*judged, *([] if apart else self._records)], hparams)
        generator = torch.Generator().manual_seed(self.context.seed)
        order: list[int] = torch.randperm(len(judged), generator=generator).tolist()[: hparams.val_items]
        chunks = [order[start : start + hparams.batch_size] for start in range(0, len(order), hparams.batch_size)]
        return [drawing.batch(chunk, generator) for chunk in chunks]

    def parameters(self) -> Mapping[str, Tensor]:
        """Of both models, or of their last blocks."""
        return self._parameters

    def rates(self) -> Mapping[str, float]:
        """The classifier may have its own."""
        return self._rates

    def run_step(self, batch: ScopeBatch) -> Stepped:
        """As the objective says."""
        return self._step(batch)

    def editor(self) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """How texts are read; the models are in folders of their own."""
        return {}, self.made.config

    def write_files(self, folder: Path) -> None:
        """Both models as Hugging Face folders."""
        self.made.write_models(folder)

    def origin(self) -> Mapping[str, Any]:
        """Digests of the models that it started from."""
        return {"started_from": self._started_from}

    def _neighbours(self) -> Neighbours | None:
        hparams, context = self.hparams, self.context
        if hparams.hard_negatives == 0:
            return None
        folder = context.resource("encoder") if "encoder" in context.resources else None
        encoder = load_encoder(context.options.get("encoder", NGRAMS), folder=folder, device=self.device)
        prompts, ids = _prompts(self._records)
        return Neighbours.among(
            prompts, ids, encoder.encode, hparams.hard_near, hparams.hard_far, hparams.hard_temperature
        )


def _prompts(records: Sequence[Record]) -> tuple[list[str], list[str]]:
    return [record.prompt for record in records], [record.id for record in records]
