"""How long a benchmark will go on, from what it took so far."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeAlias

from kedit_bench.cells import Cell

Kind: TypeAlias = tuple[str, str, str]


class Pace:
    """Seconds a request, by model, method and scenario; where nothing is known yet, those of the rest.

    Args:
        cells: all that will be run.
        clock: seconds that only go up.
    """

    def __init__(self, cells: Sequence[Cell], clock: Callable[[], float] = time.monotonic) -> None:
        self._left = {id(cell): len(cell.edited) for cell in cells}
        self._kinds = {id(cell): _kind(cell) for cell in cells}
        self._spent: dict[Kind, float] = defaultdict(float)
        self._done: dict[Kind, int] = defaultdict(int)
        self._clock = clock
        self._since = clock()

    def begin(self) -> None:
        """A cell begins: what was done until now (loading a model) is no part of it."""
        self._since = self._clock()

    def advance(self, cell: Cell, requests: int, *, fresh: bool) -> None:
        """Requests of a cell are done; ``fresh``: by this run, not by one before."""
        now = self._clock()
        if fresh:
            self._spent[_kind(cell)] += now - self._since
            self._done[_kind(cell)] += requests
        self._since = now
        self._left[id(cell)] = max(0, self._left[id(cell)] - requests)

    def finish(self, cell: Cell) -> None:
        """Nothing of a cell is left, be it done or failed."""
        self._left[id(cell)] = 0

    def left(self) -> float | None:
        """Seconds until all is done, or None as long as nobody can tell."""
        done = sum(self._done.values())
        if not done:
            return None if any(self._left.values()) else 0.0
        usual = sum(self._spent.values()) / done
        rates = {kind: self._spent[kind] / count for kind, count in self._done.items() if count}
        return sum(count * rates.get(self._kinds[cell], usual) for cell, count in self._left.items())


def _kind(cell: Cell) -> Kind:
    return cell.model.called, cell.method.called, cell.scenario.kind
