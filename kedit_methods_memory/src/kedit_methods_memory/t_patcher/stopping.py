"""When training ends (sheet section 5)."""

from __future__ import annotations

from attrs import define, field

_GAIN = 0.001
_PATIENCE = 1


@define
class StopRule:
    """Validation losses of right states, one after another; done when the last ones brought nothing.

    Attributes:
        gain: a loss is better than the best one before when it is lower by more than this.
        patience: so many losses in a row that are not better end it.
        seen: the losses.
    """

    gain: float = _GAIN
    patience: int = _PATIENCE
    seen: list[float] = field(factory=list)
    _best: int = 0

    def ends_with(self, loss: float) -> bool:
        """Take a loss; whether training ends with it."""
        self.seen.append(loss)
        if loss < self.seen[self._best] - self.gain:
            self._best = len(self.seen) - 1
        return self._best < len(self.seen) - self.patience
