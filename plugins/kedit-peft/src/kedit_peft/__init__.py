"""Patches of kedit as PEFT adapters and GGUF LoRA files, and PEFT adapters as patches."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kedit_peft.export import export_gguf, export_peft
    from kedit_peft.reading import read_peft

__version__ = "0.1.0"

_HOMES = {
    "export_gguf": "kedit_peft.export",
    "export_peft": "kedit_peft.export",
    "read_peft": "kedit_peft.reading",
}

__all__ = ["export_gguf", "export_peft", "read_peft"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
