"""Loaded editors, shared by whatever uses them on one live model.

They hang on the model, as its stack does, and only for as long as a router or an Editor holds them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from kedit_methods_memory.serac.checkpoint import SeracEditor

ATTRIBUTE = "_kedit_serac_editors"


class _Kept:
    def __init__(self) -> None:
        self.editors: WeakValueDictionary[str, SeracEditor] = WeakValueDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Kept, ())  # a copy of the model holds none


def editor_at(model: nn.Module, folder: Path, digest: str, device: torch.device) -> SeracEditor:
    """The editor whose folder has this digest, loaded when nobody on this model holds it, and on ``device``."""
    kept = model.__dict__.setdefault(ATTRIBUTE, _Kept())
    editor: SeracEditor | None = kept.editors.get(digest)
    if editor is None:
        editor = kept.editors[digest] = SeracEditor.load(folder, digest, device)
    editor.to(device)
    return editor
