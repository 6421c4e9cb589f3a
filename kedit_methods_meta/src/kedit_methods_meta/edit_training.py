"""What the trainers of this family's shape nets share: what they draw, texts as ids, and what is saved."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kedit_core.forward import Pair
from kedit_core.training import BaseTrainer, EditTrainingHyperParams, Stepped, TrainingContext
from kedit_core.training.records import EditExample, Examples
from kedit_methods_meta.hparams.editor import EditorSettings
from kedit_methods_meta.pairs import check_records, pair_of
from kedit_methods_meta.places import places_of
from kedit_methods_meta.saved_editor import warn_of_half_precision
from kedit_methods_meta.shape_nets import EditorModule

Batch: TypeAlias = tuple[EditExample, ...]

KEPT = 1 << 16  # texts whose ids are kept


class EditTrainer(BaseTrainer[Batch]):
    """Trains an :class:`EditorModule` on examples drawn from requests; a subclass says what a step is.

    Args:
        hparams: of the training. settings: of the editor, part of these.
        instruction: template of what stands before the prompts that the editor sees.

    Attributes:
        places: the edited weights. module: what is trained.
        examples: what is drawn from.
        pair: a prompt and an answer as ids.

    Raises InputError (RequestError) for places, records or an instruction that do not suit the model.
    """

    module: EditorModule

    def __init__(
        self,
        context: TrainingContext,
        hparams: EditTrainingHyperParams,
        settings: EditorSettings,
        instruction: str | None = None,
    ) -> None:
        super().__init__(context, hparams)
        self.places = places_of(context.adapter, settings.parts, settings.layers, settings.decoder_layers)
        self.examples = Examples(context.requests, hparams)
        self.count = self.examples.count
        self._validating = Examples(context.validation, hparams, unrelated=context.requests)
        self._append_eos = settings.append_eos
        self.pair = lru_cache(KEPT)(self.make_pair)
        check_records(context, [*context.requests, *context.validation], self.pair, instruction)
        warn_of_half_precision(context)
        self.module = self.make_editor(torch.Generator().manual_seed(context.seed)).to(context.forward.device)

    @abstractmethod
    def make_editor(self, generator: torch.Generator) -> EditorModule:
        """The editor at its start."""

    @abstractmethod
    def step(self, batch: Batch, learning: bool) -> Stepped:
        """Losses of a micro-batch; with gradients, and counted into the statistics, where it is learned from."""

    def make_pair(self, prompt: str, answer: str) -> Pair:
        """A prompt and an answer as ids; :attr:`pair` keeps them."""
        return pair_of(self.context.tokens, prompt, answer, self._append_eos)

    # ------------------------------------------------------------------ what the loop asks for
    def draw(self, indices: Sequence[int], generator: torch.Generator) -> Batch:
        return self.examples.draw(indices, generator)

    def validation(self) -> Sequence[Batch]:
        return self._validating.batches(self.hparams.batch_size, self.hparams.val_items, self.context.seed)

    def parameters(self) -> Mapping[str, Tensor]:
        return dict(self.module.named_parameters())

    def buffers(self) -> Mapping[str, Tensor]:
        return dict(self.module.named_buffers())

    def editor(self) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        return self.module.tensors(), self.module.config()

    def run_step(self, batch: Batch) -> Stepped:
        return self.step(batch, learning=True)

    def validate_step(self, batch: Batch) -> Stepped:
        return self.step(batch, learning=False)
