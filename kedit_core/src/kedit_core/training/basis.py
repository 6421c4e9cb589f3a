"""What tells the base of an editor: its architecture and all of its weights, in whatever dtype they are loaded."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from kedit_core.models.storage import first_names, value_of
from kedit_core.models.wrappers import architecture_of
from kedit_core.patches.digests import BASE_DTYPES, config_digest, digests_in, dtype_name, tensor_digest


def describe_base(model: nn.Module, tokenizer: Any, name: str | None, revision: str | None) -> dict[str, Any]:
    """A base as an editor's ``state.json`` has it: JSON, without a path.

    All weights are read once and hashed as float32, bfloat16 and float16 (seconds for each gigabyte).
    """
    config = getattr(model, "config", None)
    return {
        "name": name,
        "revision": revision,
        "architecture": architecture_of(model),
        "config_sha256": None if config is None else config_digest(config),
        "dtype": dtype_name(_main_dtype(model)),
        "weights_sha256": weights_digests(model, _dtypes(model)),
        "tokenizer_sha256": tokens_digest(tokenizer),
    }


def check_base(base: Mapping[str, Any], model: nn.Module) -> str | None:
    """What is different in a model from a described base, as a noun phrase; None when it is that base."""
    if base.get("architecture") != architecture_of(model):
        return f"the architecture {architecture_of(model)} in place of {base.get('architecture')}"
    known = base.get("weights_sha256")
    known = known if isinstance(known, Mapping) else {}
    here = _main_dtype(model)
    # as they are, or rounded as they were for the training
    compared = {
        dtype_name(dtype): dtype for dtype in _dtypes(model) if dtype == here or dtype_name(dtype) == base.get("dtype")
    }
    wanted = [name for name in compared if isinstance(known.get(name), str)]
    if not wanted:
        return f"weights in {dtype_name(here)}, of which the editor has no digest"
    found = weights_digests(model, [compared[name] for name in wanted])
    return None if any(found[name] == known[name] for name in wanted) else "other weights"


def same_tokens(base: Mapping[str, Any], tokenizer: Any) -> bool:
    """Whether a tokenizer has the tokens of a described base."""
    return bool(base.get("tokenizer_sha256") == tokens_digest(tokenizer))


def weights_digests(model: nn.Module, dtypes: list[torch.dtype]) -> dict[str, str]:
    """dtype -> SHA-256 over names, shapes and elements of all parameters, those of floating point cast to that dtype.

    Tied parameters count once, under their first name; packed ones by the tensors they are made of.
    """
    whole = {dtype_name(dtype): hashlib.sha256() for dtype in dtypes}
    for name in sorted(first_names(model)):
        for tensor in value_of(model, name, model.get_parameter(name)):
            found = digests_in(tensor, dtypes) if tensor.is_floating_point() else {}
            plain = "" if found else tensor_digest(tensor)
            for dtype, hasher in whole.items():
                hasher.update(f"{name}\0{list(tensor.shape)}\0{found.get(dtype, plain)}\n".encode())
    return {dtype: hasher.hexdigest() for dtype, hasher in whole.items()}


def tokens_digest(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer's vocabulary."""
    return hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _dtypes(model: nn.Module) -> list[torch.dtype]:
    return [*BASE_DTYPES, torch.float64] if _main_dtype(model) == torch.float64 else list(BASE_DTYPES)


def _main_dtype(model: nn.Module) -> torch.dtype:
    """The floating dtype that most of a model's elements have."""
    counts: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            counts[parameter.dtype] += parameter.numel()
    return counts.most_common(1)[0][0] if counts else torch.float32
