"""What tuning may take, and what it has taken. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable

from attrs import define, field


@define
class Budget:
    """Edits (one fact edited once) and wall time, either without a limit when None.

    Attributes:
        edits, seconds: the limits.
        clock: seconds that only grow.
        spent: edits made.
        measuring: seconds these took.
    """

    edits: int | None = None
    seconds: float | None = None
    clock: Callable[[], float] = time.monotonic
    spent: int = 0
    measuring: float = 0.0
    _started: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._started = self.clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning, whatever they went to."""
        return self.clock() - self._started

    @property
    def pace(self) -> float | None:
        """Seconds an edit takes; None before the first."""
        return self.measuring / self.spent if self.spent else None

    def record(self, edits: int, seconds: float) -> None:
        """Some edits were made."""
        self.spent += edits
        self.measuring += seconds

    def allows(self, edits: int, kept: int = 0) -> bool:
        """Whether so many more edits, and ``kept`` after them, fit; before the first edit nobody knows the time."""
        wanted = edits + kept
        if self.edits is not None and self.spent + wanted > self.edits:
            return False
        return self.seconds is None or self.elapsed + wanted * (self.pace or 0.0) <= self.seconds

    def affordable(self) -> int | None:
        """Edits that fit in all, those made included; None for no limit."""
        limits = [] if self.edits is None else [self.edits]
        if self.seconds is not None and self.pace:
            limits.append(self.spent + max(int((self.seconds - self.elapsed) / self.pace), 0))
        return min(limits, default=None)
