"""Patches on the Hugging Face Hub, in folders and on web servers: pushed, found, pulled and verified (docs/sharing.md).

Importing this package imports neither torch nor huggingface_hub.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kedit_hub.pulled import Pulled
    from kedit_hub.pulling import from_pretrained, pull
    from kedit_hub.pushing import Pushed, push, push_to_hub
    from kedit_hub.searching import Found, search
    from kedit_hub.shelf import Shelf

__all__ = ["Found", "Pulled", "Pushed", "Shelf", "from_pretrained", "pull", "push", "push_to_hub", "search"]

_WHERE = {
    "Found": "searching",
    "Pulled": "pulled",
    "Pushed": "pushing",
    "Shelf": "shelf",
    "from_pretrained": "pulling",
    "pull": "pulling",
    "push": "pushing",
    "push_to_hub": "pushing",
    "search": "searching",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"kedit_hub.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
