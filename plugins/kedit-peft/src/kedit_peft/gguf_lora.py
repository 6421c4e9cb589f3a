"""The exporter ``gguf-lora``: what llama.cpp's convert_lora_to_gguf.py writes, for ``llama-cli --lora``.

``general.type`` adapter, ``adapter.type`` lora, ``adapter.lora.alpha`` the rank (llama.cpp scales by alpha / rank), and
for each weight ``NAME.lora_a`` [r, in] and ``NAME.lora_b`` [out, r].
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kedit_core.contract import ExportReport
from kedit_core.errors import InputError
from kedit_core.extras import needed
from kedit_core.patches import EditPatch
from kedit_peft.adapter import Adapter, build_adapter
from kedit_peft.llama_cpp import Architecture, Heads, architecture_of, heads_of, tensor_names

_TYPES = {"float32": ("F32", "ALL_F32"), "float16": ("F16", "MOSTLY_F16"), "bfloat16": ("BF16", "MOSTLY_BF16")}


def write_gguf(
    patches: Sequence[EditPatch], out: Path, *, base: str | os.PathLike[str] | None = None, **options: Any
) -> ExportReport:
    """Write a LoRA adapter to the new file ``out``; the same patches and options always give the same bytes.

    Args:
        base: where the model's config.json is: a folder, a registered name or a Hub id; by default the name that the
            patch records. Looked at only where rows are moved.
        options: of :func:`kedit_peft.adapter.build_adapter`.

    Raises:
        InputError: as :func:`kedit_peft.adapter.build_adapter`, an architecture that llama.cpp does not know, or a
            missing ``base``.
        MissingExtraError: the gguf library is not installed.
    """
    if base is not None and not isinstance(base, str | os.PathLike):
        raise InputError(f"base is {base!r}; give a folder, a registered name or a Hub id")
    gguf = needed("gguf", "export to gguf-lora", "kedit-peft[gguf]")
    architecture = architecture_of(patches[0].base.architecture)
    adapter = build_adapter(patches, served=(), **options)
    names = tensor_names(gguf, architecture, [weight.module for weight in adapter.weights])
    heads = heads_of(base if base is not None else patches[0].base.name)
    tensors: list[tuple[str, Tensor]] = []
    for weight in adapter.weights:
        left = _moved(weight.factors.left, weight.module, architecture, heads)
        tensors += [(f"{names[weight.module]}.lora_a", weight.factors.right), (f"{names[weight.module]}.lora_b", left)]
    _write(gguf, out, architecture, adapter, sorted(tensors, key=lambda item: item[0]))
    return adapter.report((), architecture=architecture.name)


def _moved(left: Tensor, module: str, architecture: Architecture, heads: Heads) -> Tensor:
    """The left factor with its rows in llama.cpp's order."""
    order = architecture.moved.get(module.rpartition(".")[2])
    return left if order is None else left[order(left.shape[0], heads)].contiguous()


def _write(
    gguf: Any, out: Path, architecture: Architecture, adapter: Adapter, tensors: Sequence[tuple[str, Tensor]]
) -> None:
    kind, file_type = _TYPES[adapter.dtype]
    writer = gguf.GGUFWriter(out, architecture.name)
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(adapter.rank))
        writer.add_file_type(gguf.LlamaFileType[file_type])
        for name, tensor in tensors:
            # numpy has no bfloat16: its two bytes are handed over as they are
            plain = tensor.view(torch.uint8) if tensor.dtype == torch.bfloat16 else tensor
            writer.add_tensor(name, plain.numpy(), raw_dtype=gguf.GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
