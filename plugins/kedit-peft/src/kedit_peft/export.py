"""The Python API of the formats: patches to a folder or file, written in one step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from kedit_core.contract import ExportReport
from kedit_core.patches import EditPatch
from kedit_core.patches.exporting import export_patches
from kedit_peft.plugin import GGUF_LORA, PEFT


def export_peft(patches: EditPatch | Sequence[EditPatch], out: str | os.PathLike[str], **options: Any) -> ExportReport:
    """Write patches as a PEFT adapter to a new folder.

    Args:
        patches: one, or several of one base, which stand for their sum.
        out: a folder that is not there, or is empty.
        options: ``rank``, ``max_rank``, ``tolerance``, ``dtype``, ``base_name``; see
            :func:`kedit_peft.writing.write_peft`.

    Raises as :func:`kedit_core.patches.exporting.export_patches` and :func:`kedit_peft.adapter.build_adapter`.
    """
    return export_patches(_several(patches), PEFT, out, options)


def export_gguf(patches: EditPatch | Sequence[EditPatch], out: str | os.PathLike[str], **options: Any) -> ExportReport:
    """Write patches as a GGUF LoRA file for llama.cpp; needs ``kedit-peft[gguf]``.

    Args:
        patches: as for :func:`export_peft`.
        out: a file that is not there, or is empty.
        options: ``rank``, ``max_rank``, ``tolerance``, ``dtype``, ``base``; see
            :func:`kedit_peft.gguf_lora.write_gguf`.
    """
    return export_patches(_several(patches), GGUF_LORA, out, options)


def _several(patches: EditPatch | Sequence[EditPatch]) -> Sequence[EditPatch]:
    return (patches,) if isinstance(patches, EditPatch) else patches
