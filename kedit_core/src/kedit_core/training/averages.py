"""Measurements averaged by their weights, over micro-batches and over processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

_NLL, _PERPLEXITY = "nll/", "perplexity/"
_MOST = 700.0  # exp of more is no float any more


class Averages:
    """name -> sum and weight of what was measured."""

    def __init__(self, sums: Mapping[str, Iterable[float]] | None = None) -> None:
        self._sums = {name: list(each) for name, each in (sums or {}).items()}

    def add(self, values: Mapping[str, tuple[float, float]]) -> None:
        """Count one micro-batch's values."""
        for name, (total, weight) in values.items():
            held = self._sums.setdefault(name, [0.0, 0.0])
            held[0] += float(total)
            held[1] += float(weight)

    def merge(self, other: Averages) -> None:
        """Count what another has counted."""
        self.add({name: (total, weight) for name, (total, weight) in other._sums.items()})

    def sums(self) -> dict[str, list[float]]:
        """As the constructor takes them: JSON."""
        return {name: list(each) for name, each in sorted(self._sums.items())}

    def values(self) -> dict[str, float]:
        """name -> average, and what follows from it.

        ``perplexity/x`` for ``nll/x``; ``drawdown``, how much of ``acc/pre`` is lost in ``acc/post``.
        """
        found = {name: total / weight for name, (total, weight) in sorted(self._sums.items()) if weight}
        for name in [name for name in found if name.startswith(_NLL)]:
            found[f"{_PERPLEXITY}{name.removeprefix(_NLL)}"] = math.exp(min(found[name], _MOST))
        if "acc/pre" in found and "acc/post" in found:
            found["drawdown"] = found["acc/pre"] - found["acc/post"]
        return found
