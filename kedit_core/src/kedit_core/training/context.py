"""What a trainer is given beside its settings."""

from __future__ import annotations

from attrs import define, field

from kedit_core.editing import EditContext
from kedit_core.requests import EditRequest
from kedit_core.training.processes import Processes


@define(kw_only=True)
class TrainingContext(EditContext):
    """One training's view of its Editor: all that an edit's context offers, and what only a training has.

    The model is frozen and in eval mode for the whole training, with whatever patches are on it, and must come out of
    it untouched: what is edited in a step is edited in the forward pass (:meth:`provisional`, or functionally).

    Attributes:
        requests: to train on. validation: to validate on, of other cases.
        processes: of this training; :meth:`BaseTrainer.gather` and :meth:`BaseTrainer.agree` are usually enough.
        hparams: the settings of the training.
    """

    validation: tuple[EditRequest, ...] = ()
    processes: Processes = field(factory=Processes)

    @property
    def resources_used(self) -> dict[str, str]:
        """role -> digest of everything that was asked for with :meth:`resource` or told with :meth:`note_resource`."""
        return dict(sorted(self._used.items()))
