"""How llama.cpp names and stores the weights of the architectures that it puts LoRA adapters on.

Its converters (convert_hf_to_gguf.py) move rows of some projections: those of q and k of Llama, whose rotary embedding
pairs neighbours there and halves here, and those of GPT-NeoX's fused q, k, v. A LoRA's left factor has its rows moved
alike. Conv1D weights are stored [out, in] there, which factors are anyway.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.errors import InputError
from kedit_core.files import read_object

_LONGEST_CONFIG = 16 << 20

Heads = Callable[[str], int]
RowOrder = Callable[[int, Heads], Tensor]


@frozen
class Architecture:
    """An architecture as GGUF knows it: its name there, and which modules have their rows moved, by their last name."""

    name: str
    moved: Mapping[str, RowOrder]


def _halves_to_pairs(key: str) -> RowOrder:
    """Within each head, the first and second half become neighbours."""

    def order(rows: int, heads: Heads) -> Tensor:
        return _grid(rows, heads(key), 2).transpose(1, 2).reshape(-1)

    return order


def _fused_by_kind(rows: int, heads: Heads) -> Tensor:
    """From q, k, v of each head to q of all heads, k of all, v of all."""
    return _grid(rows, heads("num_attention_heads"), 3).transpose(0, 1).reshape(-1)


def _grid(rows: int, heads: int, parts: int) -> Tensor:
    if heads < 1 or rows % (heads * parts):
        raise InputError(f"{rows} rows are no {heads} heads of {parts} parts; give the base that the patch is for")
    return torch.arange(rows).reshape(heads, parts, -1)


_LLAMA = Architecture(
    "llama",
    {"q_proj": _halves_to_pairs("num_attention_heads"), "k_proj": _halves_to_pairs("num_key_value_heads")},
)
ARCHITECTURES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": Architecture("qwen2", {}),
    "Qwen3ForCausalLM": Architecture("qwen3", {}),
    "Phi3ForCausalLM": Architecture("phi3", {}),
    "Gemma2ForCausalLM": Architecture("gemma2", {}),
    "Gemma3ForCausalLM": Architecture("gemma3", {}),
    "GPT2LMHeadModel": Architecture("gpt2", {}),
    "GPTNeoXForCausalLM": Architecture("gptneox", {"query_key_value": _fused_by_kind}),
}


def architecture_of(name: str) -> Architecture:
    """What GGUF calls a transformers class; InputError where llama.cpp has none, or kedit does not know its rows."""
    if name not in ARCHITECTURES:
        raise InputError(f"{name} cannot be exported for llama.cpp; known are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def tensor_names(gguf: Any, architecture: Architecture, modules: list[str]) -> dict[str, str]:
    """Module -> name of its weight in a GGUF file, by the gguf library's own map; InputError where it has none."""
    kind = next((arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name), None)
    if kind is None:
        raise InputError(f"the installed gguf library does not know {architecture.name}; install a newer one")
    numbers = [int(number) for module in modules for number in re.findall(r"\.(\d+)\.", module) if len(number) < 6]
    known = gguf.get_tensor_name_map(kind, max(numbers, default=0) + 1)
    names = {module: known.get_name(f"{module}.weight", try_suffixes=(".weight",)) for module in modules}
    if missing := [module for module, name in names.items() if name is None]:
        raise InputError(f"GGUF has no name for {missing[0]!r} of {architecture.name}; export a merged folder")
    return names


def heads_of(base: str | os.PathLike[str] | None) -> Heads:
    """Reads numbers of heads from the config of a model (folder, registered name or Hub id), when one is asked for."""

    def heads(key: str) -> int:
        if base is None:
            raise InputError(
                "llama.cpp stores the rows of this projection in an order that follows from the number of heads; say "
                "where the model's config.json is, with base="
            )
        config = _config(_config_of(os.fspath(base)))
        value = config.get(key)
        if value is None and key == "num_key_value_heads":
            value = config.get("num_attention_heads")
        if type(value) is not int:
            raise InputError(f"config.json of {base} has no {key}; give the base that the patch is for")
        return value

    return heads


def _config_of(base: str) -> Path:
    """Where the config.json of a model is; of a Hub model nothing else is fetched."""
    if (file := Path(base) / "config.json").is_file():
        return file
    if ":" in base:
        from kedit_core.plugins import Catalogue, Host

        return Path(Host(Catalogue.installed()).model_source(base).folder(base)) / "config.json"
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(base, "config.json"))
    except Exception as error:  # the hub client has many kinds of errors; the user needs one sentence
        raise InputError(
            f"{base} is no folder with a config.json, and none could be had from the Hugging Face Hub "
            f"({type(error).__name__}); check the spelling or the network"
        ) from error


def _config(path: Path) -> dict[str, Any]:
    try:
        return read_object(path, _LONGEST_CONFIG)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({str(error)[:200]}); give the folder of the base") from error
