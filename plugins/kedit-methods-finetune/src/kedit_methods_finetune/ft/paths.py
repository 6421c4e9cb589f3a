"""Logits of one batch as a function of the trained weights, run again and again.

While a few weights of block l are trained, everything below them is the same at every step (specification: fine-tuning,
section 8). So a path keeps what comes before the first trained weight and runs only what is behind it; the plain path
keeps nothing. All give the same logits, with gradients where parameters ask for them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from kedit_core.forward import BlockCalls, ForwardTools, Site
from kedit_methods_finetune.ft.places import starts_behind
from kedit_methods_finetune.hparams.ft import FtHyperParams
from kedit_methods_finetune.questions import Questions


class Path(ABC):
    """How the logits of some questions are computed."""

    told: ClassVar[str]

    def __init__(self, forward: ForwardTools, questions: Questions) -> None:
        self.forward = forward
        self.questions = questions

    @abstractmethod
    def logits(self) -> Tensor:
        """``[n, vocabulary]`` at the questions' cells, with the weights as they are now."""

    @property
    def kept_bytes(self) -> int:
        """What it keeps from step to step."""
        return 0


class Whole(Path):
    """The plain path: the whole model, and the head at the cells alone."""

    told = "the whole model"

    def logits(self) -> Tensor:
        batch, cells = self.questions.batch, self.questions.cells
        return cast(Tensor, self.forward.run(batch, logits_at=cells, grad=torch.is_grad_enabled()).logits)


class BehindProjection(Path):
    """Keeps the down-projection's input and the residual it is added to; runs the projection and the blocks behind.

    Where no block is behind, only the cells that are read are kept: nothing else reaches an answer.
    """

    told = "the projection and what is behind it"

    def __init__(self, forward: ForwardTools, questions: Questions, layer: int) -> None:
        super().__init__(forward, questions)
        view, batch = forward.view, questions.batch
        self.layer, self.last = layer, view.num_layers - 1
        inner, outer, after = (
            Site(layer, "mlp_out", "input"),
            Site(layer, "mlp_out", "output"),
            Site(layer, "block", "output"),
        )
        at = questions.cells if layer == self.last else None
        found = forward.run(batch, capture=(inner, outer, after), at=at).activations
        self.dtype = found[after].dtype
        wide = torch.promote_types(self.dtype, torch.float32)
        self.inner = found[inner]
        self.residual = found[after].to(wide) - found[outer].to(wide)
        self.calls = BlockCalls() if layer == self.last else forward.record(batch)

    def logits(self) -> Tensor:
        view = self.forward.view
        written = view.mlp_out(self.layer)(self.inner)
        hidden = (self.residual + written.to(self.residual)).to(self.dtype)
        if self.layer == self.last:
            return view.head(hidden)
        hidden = self.forward.blocks(hidden, self.layer + 1, self.last, self.calls)
        return view.head(_picked(hidden, self.questions.cells))

    @property
    def kept_bytes(self) -> int:
        return self.inner.nbytes + self.residual.nbytes


class FromBlock(Path):
    """Keeps the input of the lowest trained block, and runs it and those behind."""

    told = "the block and what is behind it"

    def __init__(self, forward: ForwardTools, questions: Questions, layer: int) -> None:
        super().__init__(forward, questions)
        site = Site(layer, "block", "input")
        self.layer = layer
        self.hidden = forward.run(questions.batch, capture=(site,)).activations[site]
        self.calls = forward.record(questions.batch)

    def logits(self) -> Tensor:
        view = self.forward.view
        hidden = self.forward.blocks(self.hidden, self.layer, view.num_layers - 1, self.calls)
        return view.head(_picked(hidden, self.questions.cells))

    @property
    def kept_bytes(self) -> int:
        return self.hidden.nbytes


class BehindEncoder(Path):
    """Keeps what the encoder gives, and runs the decoder."""

    told = "the decoder"

    def __init__(self, forward: ForwardTools, questions: Questions) -> None:
        super().__init__(forward, questions)
        model: Any = forward.model
        batch = questions.batch
        with torch.no_grad():
            found = model.get_encoder()(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, return_dict=True
            )
        self.encoded = cast(Tensor, found.last_hidden_state).detach()

    def logits(self) -> Tensor:
        return self.forward.decoder_logits(self.questions.batch, self.encoded, self.questions.cells)

    @property
    def kept_bytes(self) -> int:
        return self.encoded.nbytes


def shortest(forward: ForwardTools, questions: Questions, hparams: FtHyperParams) -> Path:
    """The path that runs least for what is trained; nobody has compared it with the plain one yet."""
    layer = hparams.layers[0]
    if forward.view.is_encoder_decoder:
        return BehindEncoder(forward, questions) if hparams.stack == "decoder" else Whole(forward, questions)
    if starts_behind(forward.view, hparams):
        return BehindProjection(forward, questions, layer)
    return FromBlock(forward, questions, layer)


def kept_estimate(forward: ForwardTools, questions: Questions, hparams: FtHyperParams) -> int:
    """Bytes that :func:`shortest` would keep, before it is built."""
    view, batch = forward.view, questions.batch
    size = next(view.model.parameters()).element_size()
    columns = batch.rows * batch.width
    if not view.is_encoder_decoder and starts_behind(view, hparams):
        if hparams.layers[0] == view.num_layers - 1:
            columns = len(questions.cells)
        return columns * (view.mlp_size(hparams.layers[0]) * size + view.hidden_size * max(size, 4))
    return columns * view.hidden_size * size


def _picked(hidden: Tensor, cells: Tensor) -> Tensor:
    where = cells.to(hidden.device)
    return hidden[where[:, 0], where[:, 1]]
