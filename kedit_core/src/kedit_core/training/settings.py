"""What every training can be told; methods add their own. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from attrs import field, frozen, validators

from kedit_core.hparams import HyperParams

Goal: TypeAlias = Literal["auto", "minimise", "maximise"]
Outer: TypeAlias = Literal["rephrase", "original", "either"]
Locality: TypeAlias = Literal["others", "own", "both"]

_positive: Any = validators.gt(0)
_whole: Any = validators.ge(1)
_HIGHER = ("acc", "ES")  # parts of a key's name that say that more is better


def _known_trainer(instance: Any, attribute: Any, value: str | None) -> None:
    known = type(instance).COMPAT
    if value is not None and value not in known:
        raise ValueError(f"this method follows no such trainer (known: {', '.join(known) or 'none'})")


@frozen(kw_only=True)
class TrainingHyperParams(HyperParams):
    """Settings of the loop; subclass it for those of a method, and give other defaults there.

    All intervals count micro-batches of one process.

    Attributes:
        iterations: micro-batches at most. batch_size: edits of a micro-batch.
        accumulate: micro-batches of an optimiser step, whose gradients are averaged.
        lr: learning rate of what has none of its own (:meth:`BaseTrainer.rates`).
        clip: bound of the averaged gradients' global norm.
        val_interval, val_items: validate every so many iterations, on so many records at most.
        patience: stop when the validation was best so many iterations ago.
        early_stop_key, goal: the validation value that says what is best, and whether it should be small or great;
            ``auto`` takes names with ``acc`` or ``ES`` in them for those that should be great.
        save_interval: how often the state to resume from is written.
        log_interval: how often a line of training values is written.
        compat: name of another trainer whose habits are followed; :attr:`COMPAT` has those that a method knows.
    """

    TIMING: ClassVar[tuple[str, ...]] = (
        "iterations", "val_interval", "patience", "save_interval", "log_interval",
    )  # fmt: skip
    """What may be changed when a training is resumed."""

    COMPAT: ClassVar[Mapping[str, bool]] = {}
    """Values of ``compat`` that a method's settings know -> whether edits then come in the order of NumPy's
    ``default_rng(seed)``, and the first optimiser step one micro-batch late (it sums ``accumulate + 1`` of them): the
    habits of the trainer published by Mitchell et al. (2022). A subclass sets it; what else a name means is up to the
    method."""

    iterations: int = field(default=100_000, validator=_whole)
    batch_size: int = field(default=1, validator=_whole)
    accumulate: int = field(default=10, validator=_whole)
    lr: float = field(default=1e-5, validator=_positive)
    clip: float = field(default=100.0, validator=_positive)
    val_interval: int = field(default=5000, validator=_whole)
    val_items: int = field(default=500, validator=_whole)
    patience: int = field(default=40_000, validator=_whole)
    early_stop_key: str = "loss/total"
    goal: Goal = field(default="auto", validator=validators.in_(get_args(Goal)))
    save_interval: int = field(default=5000, validator=_whole)
    log_interval: int = field(default=100, validator=_whole)
    compat: str | None = field(default=None, validator=_known_trainer)

    @property
    def published_order(self) -> bool:
        """Whether edits and the first step come as in the trainer of Mitchell et al."""
        return self.compat is not None and self.COMPAT[self.compat]

    @property
    def maximises(self) -> bool:
        """Whether a greater value of ``early_stop_key`` is better."""
        return self.goal == "maximise" or (self.goal == "auto" and any(each in self.early_stop_key for each in _HIGHER))

    def lasting(self) -> dict[str, Any]:
        """The settings that a training and one that goes on with it must share: all but :attr:`TIMING`."""
        return {name: value for name, value in self.to_dict().items() if name not in self.TIMING}


@frozen(kw_only=True)
class EditTrainingHyperParams(TrainingHyperParams):
    """Settings of trainings that sample edits with :class:`kedit_core.training.Examples`.

    Attributes:
        outer: what the edited model is asked: a ``rephrase`` of the edit's prompt (records without one are left out),
            the ``original`` prompt (as EasyEdit's trainer does), or ``either`` at even odds where there is a rephrase.
        locality: what must not change: prompts of ``others`` (another record's own prompt with its true answer, or one
            of its locality probes), the record's ``own`` locality probes, or ``both`` at even odds.
        alternatives_from: name of a field of the requests' ``meta`` (``relation``); each time a record is drawn its new
            answer is one that a record with the same value there has, its own true answer left out. None always takes
            ``target_new``.
    """

    outer: Outer = field(default="rephrase", validator=validators.in_(get_args(Outer)))
    locality: Locality = field(default="others", validator=validators.in_(get_args(Locality)))
    alternatives_from: str | None = None
