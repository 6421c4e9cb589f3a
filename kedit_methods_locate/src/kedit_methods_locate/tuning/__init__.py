"""Tuning: settings for a model without a preset, found on a few facts of the user's (docs/tuning.md).

``tune`` is imported when it is first used, so that the command can offer its options without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kedit_methods_locate.tuning.candidates import Candidate, Candidates, read_tries
from kedit_methods_locate.tuning.halving import Round, Standing
from kedit_methods_locate.tuning.preset_file import check_output, preset_text, save_preset
from kedit_methods_locate.tuning.record import Check, Tuning
from kedit_methods_locate.tuning.scoring import SCORED, Score

if TYPE_CHECKING:
    from kedit_methods_locate.tuning.search import tune

__all__ = [
    "SCORED",
    "Candidate",
    "Candidates",
    "Check",
    "Round",
    "Score",
    "Standing",
    "Tuning",
    "check_output",
    "preset_text",
    "read_tries",
    "save_preset",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name == "tune":
        return import_module("kedit_methods_locate.tuning.search").tune
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
