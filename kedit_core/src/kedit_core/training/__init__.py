"""Training editors that need it: one loop that samples, differentiates, validates, checkpoints and resumes.

A method gives a :class:`BaseTrainer` (hook ``make_trainer``); :func:`train` does the rest. docs/training.md tells users
how to train, and authors of methods how to write a trainer. Names are imported when they are first used, since settings
(:class:`TrainingHyperParams`) are read without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kedit_core.training.base import BaseTrainer, Stepped
    from kedit_core.training.context import TrainingContext
    from kedit_core.training.folder import EditorFolder
    from kedit_core.training.loop import Loop
    from kedit_core.training.outcome import Outcome
    from kedit_core.training.processes import Processes
    from kedit_core.training.records import EditExample, Examples, split
    from kedit_core.training.run import Training, train
    from kedit_core.training.settings import EditTrainingHyperParams, TrainingHyperParams

_HOMES = {
    "BaseTrainer": "base",
    "EditExample": "records",
    "EditTrainingHyperParams": "settings",
    "EditorFolder": "folder",
    "Examples": "records",
    "Loop": "loop",
    "Outcome": "outcome",
    "Processes": "processes",
    "Stepped": "base",
    "Training": "run",
    "TrainingContext": "context",
    "TrainingHyperParams": "settings",
    "split": "records",
    "train": "run",
}

__all__ = [
    "BaseTrainer",
    "EditExample",
    "EditTrainingHyperParams",
    "EditorFolder",
    "Examples",
    "Loop",
    "Outcome",
    "Processes",
    "Stepped",
    "Training",
    "TrainingContext",
    "TrainingHyperParams",
    "split",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
