"""The exporter ``peft``: ``adapter_model.safetensors``, ``adapter_config.json`` and a README.

Files are written here, without the peft library; the same patches and options always give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from kedit_core.contract import ExportReport
from kedit_core.errors import InputError
from kedit_core.patches import EditPatch
from kedit_peft.adapter import Adapter, AdapterWeight, build_adapter
from kedit_peft.card import readme
from kedit_peft.servers import notes_for

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."  # what PEFT puts before a module's name


def write_peft(
    patches: Sequence[EditPatch], out: Path, *, base_name: str | None = None, **options: Any
) -> ExportReport:
    """Write an adapter into the empty folder ``out``.

    Args:
        base_name: what ``base_model_name_or_path`` says; by default the name that the patches record.
        options: of :func:`kedit_peft.adapter.build_adapter`.

    Raises:
        InputError: as :func:`kedit_peft.adapter.build_adapter`, or weights of which some are stored ``[out, in]`` and
            some ``[in, out]``, which one adapter cannot say.
    """
    if base_name is not None and (not isinstance(base_name, str) or not base_name):
        raise InputError(f"base_name is {base_name!r}; give the name of the model")
    adapter = build_adapter(patches, **options)
    transposed = _transposed(adapter.weights)
    base = patches[0].base
    name = base_name or next((patch.base.name for patch in patches if patch.base.name), None)
    tensors = {}
    for weight in adapter.weights:
        tensors[f"{PREFIX}{weight.module}.lora_A.weight"] = weight.factors.right
        tensors[f"{PREFIX}{weight.module}.lora_B.weight"] = weight.factors.left
    # one metadata key, the one PEFT writes: more would have no fixed order
    save_file(dict(sorted(tensors.items())), out / WEIGHTS, metadata={"format": "pt"})
    revision = base.revision if base_name in (None, base.name) else None
    config = _config(adapter, name, revision, base.architecture, transposed)
    (out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    notes = notes_for(adapter, base.architecture, name)
    (out / "README.md").write_text(readme(adapter, patches, name, notes), encoding="utf-8")
    return adapter.report(notes, base_name=name, fan_in_fan_out=transposed)


def _transposed(weights: Sequence[AdapterWeight]) -> bool:
    by_layout = {weight.layout: weight.place for weight in weights}
    if len(by_layout) > 1:
        raise InputError(
            f"{by_layout['in_out']!r} is stored [in, out] and {by_layout['out_in']!r} [out, in], and an adapter has "
            "one fan_in_fan_out for all; export patches that change one kind, or write a merged folder"
        )
    return "in_out" in by_layout


def _config(
    adapter: Adapter, name: str | None, revision: str | None, architecture: str, transposed: bool
) -> dict[str, Any]:
    """What PEFT's LoraConfig reads, in its portable form: one rank, one alpha, no patterns, full names of modules."""
    causal = architecture.endswith(("ForCausalLM", "LMHeadModel"))
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": name,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": adapter.rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": adapter.rank,
        "rank_pattern": {},
        "revision": revision,
        "target_modules": [weight.module for weight in adapter.weights],
        "task_type": "CAUSAL_LM" if causal else None,
        "use_dora": False,
        "use_rslora": False,
    }
