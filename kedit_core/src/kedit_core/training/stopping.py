"""Which validation was best, and whether it is too long ago."""

from __future__ import annotations

import math
from collections.abc import Mapping

from attrs import define

from kedit_core.errors import MethodError
from kedit_core.training.settings import TrainingHyperParams


@define
class Stopping:
    """Follows one value of the validations.

    Attributes:
        key, maximises, patience: of the settings.
        best, iteration: the best value and when it was; None and 0 before the first validation.
    """

    key: str
    maximises: bool
    patience: int
    best: float | None = None
    iteration: int = 0

    @classmethod
    def of(cls, hparams: TrainingHyperParams) -> Stopping:
        """As the settings say."""
        return cls(key=hparams.early_stop_key, maximises=hparams.maximises, patience=hparams.patience)

    def see(self, values: Mapping[str, float], iteration: int) -> bool:
        """Take a validation in; whether it is the best so far.

        Raises MethodError when the value is not measured, or is no number.
        """
        value = values.get(self.key)
        if value is None:
            raise MethodError(
                f"the validation has no value {self.key!r} to tell the best by; set early_stop_key to one of "
                f"{', '.join(sorted(values)) or 'none, it measured nothing'}"
            )
        if not math.isfinite(value):
            kept = "" if self.best is None else (
                f", or make an editor of the best, of iteration {self.iteration}, with --resume and "
                f"-p iterations={self.iteration}"
            )  # fmt: skip
            raise MethodError(
                f"the validation's {self.key} at iteration {iteration} is not a number; lower the learning rate{kept}"
            )
        if self.best is not None and (value <= self.best if self.maximises else value >= self.best):
            return False
        self.best, self.iteration = value, iteration
        return True

    def out(self, iteration: int) -> bool:
        """Whether patience is out."""
        return iteration - self.iteration >= self.patience
