"""What kedit knows of architectures: adapters, their registry, structural discovery, and views of live models.

:class:`ModelAdapter` is data and imports no torch; a :class:`ModelView` is an adapter bound to a model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kedit_core.models.adapter import Layout, ModelAdapter, When
from kedit_core.models.registry import AdapterRegistry

if TYPE_CHECKING:
    from kedit_core.models.discovery import discover
    from kedit_core.models.parameters import aliases_of, layout_of
    from kedit_core.models.view import ModelView

_NEED_TORCH = {
    "ModelView": "kedit_core.models.view",
    "aliases_of": "kedit_core.models.parameters",
    "discover": "kedit_core.models.discovery",
    "layout_of": "kedit_core.models.parameters",
}

__all__ = [
    "AdapterRegistry",
    "Layout",
    "ModelAdapter",
    "ModelView",
    "When",
    "aliases_of",
    "discover",
    "layout_of",
]


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCH:
        return getattr(import_module(_NEED_TORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
