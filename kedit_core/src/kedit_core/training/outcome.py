"""How a training went."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen


@frozen(kw_only=True)
class Outcome:
    """How a training went.

    Attributes:
        iterations: micro-batches that were taken in all, by each process. updates: optimiser steps.
        best_iteration, best: where the validation was best, and its value.
        stopped_early: by patience. skipped: micro-batches left out because something was not finite.
        history: each validation's values, with its ``iteration``.
        seconds: of all of it, earlier parts of a resumed training too; step_seconds: of the micro-batches alone.
        peak_bytes: memory in use at most, over what was in use at the start; of the first process.
    """

    iterations: int
    updates: int
    best_iteration: int
    best: float
    stopped_early: bool
    skipped: int
    history: tuple[Mapping[str, float], ...]
    seconds: float
    step_seconds: float
    peak_bytes: int

    @property
    def best_values(self) -> Mapping[str, float]:
        """All values of the best validation."""
        return next(each for each in reversed(self.history) if each["iteration"] == self.best_iteration)
