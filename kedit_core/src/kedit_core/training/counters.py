"""Where a training stands, beside its tensors: plain numbers that a checkpoint holds as JSON."""

from __future__ import annotations

from typing import Any

from attrs import define, field

from kedit_core.training.averages import Averages

_HISTORY = 10_000  # validations that are kept


@define
class Counters:
    """What the loop counts; each process has its own, and all but the window are equal.

    Attributes:
        iteration: micro-batches taken by each process. updates: optimiser steps.
        skipped: micro-batches left out; in_row: of these, the last ones without one between that was not.
        norm: of the last gradients, before clipping.
        seconds: of the whole training, step_seconds: of its micro-batches; a resumed one goes on counting.
        peak: bytes in use at most, over what was in use at the start.
        window: training values since the last line about them.
        history: each validation's values, with its ``iteration``.
    """

    iteration: int = 0
    updates: int = 0
    skipped: int = 0
    in_row: int = 0
    norm: float = 0.0
    seconds: float = 0.0
    step_seconds: float = 0.0
    peak: int = 0
    window: Averages = field(factory=Averages)
    history: list[dict[str, float]] = field(factory=list)

    def note(self, values: dict[str, float]) -> None:
        """Add a validation to the history."""
        self.history = [*self.history, {"iteration": float(self.iteration), **values}][-_HISTORY:]

    @property
    def validated(self) -> bool:
        """Whether the parameters have been validated as they are."""
        return bool(self.history) and self.history[-1]["iteration"] == self.iteration

    def to_json(self) -> dict[str, Any]:
        """All but the window, which differs between processes."""
        return {name: getattr(self, name) for name in self.__slots__ if name not in ("window", "__weakref__")}

    @classmethod
    def from_json(cls, values: dict[str, Any], window: dict[str, list[float]]) -> Counters:
        """As :meth:`to_json` gave them, with one process's window (:meth:`Averages.sums`)."""
        return cls(**values, window=Averages(window))
