"""The plugin: registers the formats. Imports no torch until one is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedit_core.contract import ExporterInfo, ExportReport, hookimpl

if TYPE_CHECKING:
    from kedit_core.patches import EditPatch

_ADAPTER_OPTIONS = {
    "rank": "rank of all factors, padded with zeros; by default the greatest needed (peft: the next that vLLM takes)",
    "max_rank": "truncate each weight's change to its best approximation of this rank",
    "tolerance": "refuse when a weight's relative error (Frobenius) is above this",
    "dtype": "of the factors: float32 (the default), bfloat16 or float16",
}


def _peft(patches: Sequence[EditPatch], out: Path, **options: Any) -> ExportReport:
    from kedit_peft.writing import write_peft

    return write_peft(patches, out, **options)


def _gguf(patches: Sequence[EditPatch], out: Path, **options: Any) -> ExportReport:
    from kedit_peft.gguf_lora import write_gguf

    return write_gguf(patches, out, **options)


PEFT = ExporterInfo(
    name="peft",
    summary="a LoRA adapter that PEFT, vLLM and others load",
    export=_peft,
    options={**_ADAPTER_OPTIONS, "base_name": "the model's name that servers know; by default the patch's"},
)
GGUF_LORA = ExporterInfo(
    name="gguf-lora",
    summary="a LoRA adapter that llama.cpp loads with --lora",
    export=_gguf,
    options={
        **_ADAPTER_OPTIONS,
        "base": "where the model's number of heads is read: a folder, registered name or Hub id; by default the "
        "patch's",
    },
    writes="file",
)


class PeftPlugin:
    """Implements the registration of the formats."""

    @hookimpl
    def register_exporters(self) -> Sequence[ExporterInfo]:
        """The formats of this package."""
        return [PEFT, GGUF_LORA]


def plugin() -> object:
    """The entry point: a fresh plugin object for one Editor."""
    return PeftPlugin()
