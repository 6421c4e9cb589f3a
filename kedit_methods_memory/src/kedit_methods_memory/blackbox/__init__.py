"""Models behind an OpenAI-compatible endpoint: router patches act on the client's side, before a prompt is sent."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kedit_methods_memory.blackbox.editor import EndpointEditor
    from kedit_methods_memory.blackbox.endpoint import Endpoint, EndpointError

_HOMES = {"Endpoint": "endpoint", "EndpointEditor": "editor", "EndpointError": "endpoint"}

__all__ = ["Endpoint", "EndpointEditor", "EndpointError"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
