"""KE (KnowledgeEditor): a network reads an edit and its gradient, and gates, masks and shifts it into an update.

De Cao, Aziz, Titov 2021 (arXiv 2104.08164). :mod:`info` says what the method is, and imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kedit_methods_meta.ke.editor import KeEditor
    from kedit_methods_meta.ke.method import Ke
    from kedit_methods_meta.ke.training import KeTrainer

_HOMES = {"Ke": "method", "KeEditor": "editor", "KeTrainer": "training"}

__all__ = ["Ke", "KeEditor", "KeTrainer"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
