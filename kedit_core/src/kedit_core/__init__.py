"""kedit: edit what a language model knows, measure what the edit did, hand it on as a small reversible patch.

Public names are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kedit_core.contract import MethodInfo, MetricResult, hookimpl
    from kedit_core.editing import EditContext, Editor, EditResult
    from kedit_core.errors import KeditError
    from kedit_core.hparams import HyperParams
    from kedit_core.models import ModelAdapter, ModelView
    from kedit_core.patches import EditPatch, LowRankDelta, PatchStack
    from kedit_core.requests import EditRequest, Probe, load_requests

__version__ = "0.1.0"

_HOMES = {
    "EditContext": "kedit_core.editing",
    "EditPatch": "kedit_core.patches",
    "EditRequest": "kedit_core.requests",
    "EditResult": "kedit_core.editing",
    "Editor": "kedit_core.editing",
    "HyperParams": "kedit_core.hparams",
    "KeditError": "kedit_core.errors",
    "LowRankDelta": "kedit_core.patches",
    "MethodInfo": "kedit_core.contract",
    "MetricResult": "kedit_core.contract",
    "ModelAdapter": "kedit_core.models",
    "ModelView": "kedit_core.models",
    "PatchStack": "kedit_core.patches",
    "Probe": "kedit_core.requests",
    "hookimpl": "kedit_core.contract",
    "load_requests": "kedit_core.requests",
}

__all__ = [
    "EditContext",
    "EditPatch",
    "EditRequest",
    "EditResult",
    "Editor",
    "HyperParams",
    "KeditError",
    "LowRankDelta",
    "MethodInfo",
    "MetricResult",
    "ModelAdapter",
    "ModelView",
    "PatchStack",
    "Probe",
    "hookimpl",
    "load_requests",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
