"""Settings of KE: of an edit, and of training its editor. Imports no torch."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

from attrs import field, frozen, validators

from kedit_core.hparams import HyperParams
from kedit_core.training.settings import EditTrainingHyperParams
from kedit_methods_meta.hparams.editor import Part, at_least_one, not_negative, one_of, part_of, positive

Editable: TypeAlias = Literal["auto", "all", "chosen"]
Again: TypeAlias = Literal["recompute", "same"]
Loss: TypeAlias = Literal["lagrangian", "mend"]
Answers: TypeAlias = Literal["own", "given"]

_share: Any = validators.and_(validators.ge(0), validators.lt(1))


@frozen(kw_only=True)
class KeHyperParams(HyperParams):
    """What is set when facts are edited; all else stands in the editor.

    Attributes:
        iterations: how often the editor is applied at most, until the model gives the new answer; 1 for once. A request
            alone only: several at once are edited once, apart from one another.
        again: what is applied again: ``recompute`` the editor's answer to the gradient on the weights as they are by
            then (the original's script for BERT), or the ``same`` update (its script for BART).
        portion: requests whose gradients are taken in one pass; None for as many as fit the memory budget.
    """

    iterations: int = field(default=5, validator=at_least_one)
    again: Again = field(default="recompute", validator=one_of(Again))
    portion: int | None = field(default=None, validator=validators.optional(at_least_one))


@frozen(kw_only=True, slots=False)  # slots would not mix with those of the settings of a training
class KeEditorSettings(HyperParams):
    """What an editor is, beside its numbers: kept in its ``state.json``, and set when it is trained.

    Attributes:
        editable: ``all`` projections of all blocks (not embeddings, norms, biases, nor the head), the ``chosen`` ones,
            or ``auto``: all of them in models of up to a billion parameters.
        parts, layers, decoder_layers: what is chosen: these parts of these blocks (negative numbers count from the end;
            an encoder-decoder's ``layers`` are its encoder's, and ``decoder_layers`` None takes the same numbers in its
            decoder).
        condition_size: numbers that stand for the text of an edit.
        lstm_size: of the hidden state of each direction of the LSTM that reads it.
        head_size: of the hidden layer of each weight's head.
        max_scale: the greatest factor that a weight's gate gives its update.
        condition_tokens: longer texts are cut there.
        append_eos: whether an answer ends with the end-of-sequence token; None: in encoder-decoder models only.
    """

    editable: Editable = field(default="auto", validator=one_of(Editable))
    parts: tuple[Part, ...] = ("mlp_in", "mlp_out")
    layers: tuple[int, ...] = (-3, -2, -1)
    decoder_layers: tuple[int, ...] | None = None
    condition_size: int = field(default=1024, validator=at_least_one)
    lstm_size: int = field(default=128, validator=at_least_one)
    head_size: int = field(default=128, validator=at_least_one)
    max_scale: float = field(default=1.0, validator=not_negative)
    condition_tokens: int = field(default=32, validator=at_least_one)
    append_eos: bool | None = None


@frozen(kw_only=True)
class KeTrainingHyperParams(KeEditorSettings, EditTrainingHyperParams):
    """What is set when a KE editor is trained (defaults: De Cao et al. 2021, as for BART).

    Attributes:
        loss: ``lagrangian``: the edit's loss under a bound on how far other answers move, by centred RMSprop; or
            ``mend``: ``c_edit`` and ``c_loc`` times the two, by Adam, as the port in MEND's repository does. What the
            latter trains is called ke-efk; set ``lr`` 1e-5 and ``accumulate`` 10 with it.
        unrelated: prompts of other cases beside each edit, whose answers should not move.
        unrelated_answers: the answers at whose tokens those prompts are compared: the model's ``own``, as many tokens
            as the given one has, or those ``given`` with them (always so with ``mend``).
        smoothing: share of the label that is spread over all other tokens (``lagrangian``).
        margin, margin_min: bound of the mean divergence of other answers, in nats, and what it is lowered to.
        margin_at, margin_decay: after each validation at which more than ``margin_at`` of the edits succeed the bounds
            are multiplied by ``margin_decay``.
        weight_margin, weight_margin_min: the same for the root mean square of the weights' changes; None for no bound.
        alpha_lr, alpha_max: learning rate and greatest value of the multipliers of the bounds.
        warmup, updates: optimiser steps over which all rates rise from 0, and after which they have fallen to 0.
        c_edit, c_loc: weights of the two losses (``mend``).
    """

    loss: Loss = field(default="lagrangian", validator=one_of(Loss))
    unrelated: int = field(default=63, validator=at_least_one)
    unrelated_answers: Answers = field(default="own", validator=one_of(Answers))
    smoothing: float = field(default=0.1, validator=_share)
    margin: float = field(default=1e-3, validator=positive)
    margin_min: float = field(default=1e-5, validator=not_negative)
    weight_margin: float | None = field(default=None, validator=validators.optional(positive))
    weight_margin_min: float = field(default=1e-7, validator=not_negative)
    margin_at: float = field(default=0.9, validator=_share)
    margin_decay: float = field(default=0.8, validator=validators.and_(validators.gt(0), validators.le(1)))
    alpha_lr: float = field(default=0.1, validator=positive)
    alpha_max: float = field(default=1e4, validator=positive)
    warmup: int = field(default=1000, validator=validators.ge(0))
    updates: int = field(default=200_000, validator=at_least_one)
    c_edit: float = field(default=0.1, validator=not_negative)
    c_loc: float = field(default=1.0, validator=not_negative)
    lr: float = field(default=3e-4, validator=positive)
    accumulate: int = field(default=1, validator=at_least_one)
    iterations: int = field(default=200_000, validator=at_least_one)
    clip: float = field(default=1e6, validator=validators.and_(positive, validators.lt(math.inf)))
    early_stop_key: str = "joint/acc"

    def __attrs_post_init__(self) -> None:
        if self.margin_min > self.margin:
            raise ValueError(f"margin_min {self.margin_min} is above margin {self.margin}")
        if self.weight_margin is not None and self.weight_margin_min > self.weight_margin:
            raise ValueError(f"weight_margin_min {self.weight_margin_min} is above weight_margin {self.weight_margin}")
        if self.warmup > self.updates:
            raise ValueError(f"warmup {self.warmup} is longer than all updates, {self.updates}")

    @property
    def editor(self) -> KeEditorSettings:
        """The part of the settings that the editor keeps."""
        return part_of(self, KeEditorSettings)
