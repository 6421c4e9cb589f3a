"""SHA-256 of tensors and configurations: what says that two bases are the same."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kedit_core.errors import InputError, KeditError
from kedit_core.models.storage import reshard, value_of
from kedit_core.patches import canonical

BASE_DTYPES: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)
CHUNK = 1 << 20

# what a configuration says about the file or the run it came from, not about the model
_VOLATILE_KEYS = frozenset({"transformers_version", "dtype", "torch_dtype", "name_or_path", "use_cache"})


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def byte_view(tensor: Tensor) -> memoryview:
    """The little-endian bytes of a contiguous CPU tensor, without a copy."""
    if sys.byteorder != "little":
        raise KeditError("kedit reads and writes tensors on little-endian machines only; use another machine")
    flat = tensor.detach().reshape(-1)
    view: memoryview = flat.view(torch.uint8).numpy().data
    return view


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), CHUNK):
        yield flat[start : start + CHUNK]


def digests_in(tensor: Tensor, dtypes: Sequence[torch.dtype]) -> dict[str, str]:
    """dtype name -> SHA-256 of the tensor cast to that dtype (round to nearest even), in one pass over it.

    What is hashed: the elements in row-major order, little-endian; neither shape nor dtype. Memory: a few MB.
    """
    hashers = {dtype: hashlib.sha256() for dtype in dtypes}
    with torch.no_grad():
        for chunk in _chunks(tensor):
            for dtype, hasher in hashers.items():
                hasher.update(byte_view(chunk.to(dtype).cpu().contiguous()))
    return {dtype_name(dtype): hasher.hexdigest() for dtype, hasher in hashers.items()}


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of the tensor's elements as they are: row-major, little-endian, without shape and dtype."""
    return digests_in(tensor, (tensor.dtype,))[dtype_name(tensor.dtype)]


def digests_of(tensor: Tensor) -> dict[str, str]:
    """The digests a patch records of a base tensor: as float32, bfloat16 and float16 (and float64 when it is that)."""
    return digests_in(tensor, base_dtypes(tensor.dtype))


def base_dtypes(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """The dtypes a patch records digests for, of a base in ``dtype``."""
    return (*BASE_DTYPES, torch.float64) if dtype == torch.float64 else BASE_DTYPES


def model_digest(model: nn.Module, names: Sequence[str] | None = None) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a model's parameters and buffers as they are (or of those named).

    Every name of a tied parameter counts. Weights that are offloaded, or spread over processes (all of which have to
    ask), have the digest that they have in memory; packed ones that of the tensors they are made of. Raises InputError
    for a name the model does not have.
    """
    reshard(model)
    tensors: dict[str, Tensor] = {**dict(model.named_parameters(remove_duplicate=False))}
    tensors |= dict(model.named_buffers(remove_duplicate=False))
    if unknown := sorted(set(names or ()) - set(tensors)):
        raise InputError(f"the model has no parameter or buffer {unknown[0]!r}; see named_parameters()")
    seen: dict[int, str] = {}
    whole = hashlib.sha256()
    for name in sorted(tensors if names is None else names):
        tensor = tensors[name]
        if id(tensor) not in seen:
            parts = [tensor_digest(part) for part in value_of(model, name, tensor)]
            seen[id(tensor)] = parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()
        whole.update(f"{name}\0{dtype_name(tensor.dtype)}\0{list(tensor.shape)}\0{seen[id(tensor)]}\n".encode())
    return whole.hexdigest()


def path_digest(path: Path) -> str:
    """SHA-256 of a file; of a folder, that of one line ``name NUL digest`` for each file in it, sorted by name.

    Names are relative, with ``/``, whatever the system.
    """
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    lines = (f"{name}\0{path_digest(path / name)}\n" for name in names)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class PathDigests:
    """:func:`path_digest` of files and folders, each computed once as long as no file's size or times change."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[object, str]] = {}

    def of(self, path: Path) -> str:
        """The digest of what stands at ``path`` now."""
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        states = [(file, file.stat()) for file in files]
        mark = [(file, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino) for file, state in states]
        seen, digest = self._known.get(path, (None, ""))
        if seen != mark:
            digest = path_digest(path)
            self._known[path] = (mark, digest)
        return digest


def config_digest(config: Any) -> str:
    """SHA-256 of the canonical JSON of a configuration's non-default values, without what only describes its origin.

    ``config`` is a transformers configuration or a mapping. The digest is for people and registries; it is never a
    reason to refuse a base, because defaults move between versions of transformers.
    """
    values: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_diff_dict()
    kept = {key: value for key, value in values.items() if not key.startswith("_") and key not in _VOLATILE_KEYS}
    return hashlib.sha256(canonical.dumps(_text_keys(kept), "the model's configuration")).hexdigest()


def _text_keys(value: Any) -> Any:
    """Keys as JSON has them: ``id2label`` of a live configuration has numbers, of a saved one their texts."""
    if isinstance(value, Mapping):
        return {str(key): _text_keys(inner) for key, inner in value.items()}
    return [_text_keys(inner) for inner in value] if isinstance(value, (list, tuple)) else value
