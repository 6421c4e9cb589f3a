"""IKE: in-context knowledge editing, and retrieval in context without demonstrations."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kedit_methods_memory.ike.building import Building
    from kedit_methods_memory.ike.memory import Memory
    from kedit_methods_memory.ike.method import Ike, IkeContext, memory_of

_HOMES = {"Building": "building", "Ike": "method", "IkeContext": "method", "Memory": "memory", "memory_of": "method"}

__all__ = ["Building", "Ike", "IkeContext", "Memory", "memory_of"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
