"""The bytes of a patch file: a safetensors file with one metadata key, in one canonical layout.

Written and read here rather than by the safetensors library so that bytes do not depend on its version, the header is
bounded before it is believed, and the file is hashed while it is read. Any safetensors reader can open the result.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import torch
from attrs import frozen
from torch import Tensor

from kedit_core.errors import PatchFormatError
from kedit_core.patches import canonical
from kedit_core.patches.digests import byte_view

METADATA = "__metadata__"
KEY = "kedit"
MAX_TENSORS = 65_536
MAX_RANK = 8
MAX_NAME = 1_024
MAX_ELEMENTS = 2**48

_SMALL = 64 << 20  # bytes that are asked for without looking how much there is
_CGROUP_LIMITS = tuple(Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory/memory.limit_in_bytes"))

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@frozen
class TensorEntry:
    """One tensor of a file: its name, dtype and shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@frozen
class Header:
    """What stands before the tensors: their entries in file order, the manifest, and the header's raw bytes."""

    entries: tuple[TensorEntry, ...]
    manifest: Any
    raw: bytes


def file_order(entries: Sequence[TensorEntry]) -> tuple[TensorEntry, ...]:
    """Widest elements first, then by name: every tensor is aligned, and the order depends on nothing else."""
    return tuple(sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name)))


def header_bytes(entries: Sequence[TensorEntry], manifest: bytes) -> bytes:
    """Length prefix and header of the canonical file with these tensors and this manifest."""
    fields: dict[str, Any] = {METADATA: {KEY: manifest.decode()}}
    offset = 0
    for entry in file_order(entries):
        fields[entry.name] = {
            "dtype": _CODES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    text = canonical.dumps(fields, "the header")
    text += b" " * (-len(text) % 8)
    if len(text) > canonical.MAX_BYTES:
        raise PatchFormatError(f"the header would be {len(text)} bytes long; the limit is {canonical.MAX_BYTES}")
    return struct.pack("<Q", len(text)) + text


def entry_of(name: str, tensor: Tensor) -> TensorEntry:
    """The entry of a tensor; PatchFormatError when a patch file cannot hold it."""
    check_name(name)
    if tensor.dtype not in _CODES:
        raise PatchFormatError(f"tensor {name!r} has dtype {tensor.dtype}, which a patch cannot hold; cast it first")
    if tensor.dim() > MAX_RANK:
        raise PatchFormatError(f"tensor {name!r} has {tensor.dim()} dimensions; the limit is {MAX_RANK}")
    return TensorEntry(name, tensor.dtype, tuple(tensor.shape))


def valid_shape(shape: Sequence[Any]) -> bool:
    """Whether these are the sizes of a tensor that format 1 allows; zeros are counted as ones."""
    if len(shape) > MAX_RANK or not all(type(size) is int and 0 <= size <= MAX_ELEMENTS for size in shape):
        return False
    elements: int = prod(max(size, 1) for size in shape)
    return elements <= MAX_ELEMENTS


def check_name(name: str) -> None:
    """PatchFormatError for names that no tensor of a patch may have."""
    if name == METADATA:
        raise PatchFormatError(f"{METADATA!r} cannot name a tensor in a safetensors file; choose another name")
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise PatchFormatError(f"a tensor's name has 1 to {MAX_NAME} printable characters; {name[:40]!r} does not fit")


def write(stream: Any, tensors: Mapping[str, Tensor], manifest: bytes) -> str:
    """Write the canonical file to ``stream`` (anything with ``write``); its SHA-256.

    Tensors are contiguous and on the CPU. Memory: the header.
    """
    entries = file_order([entry_of(name, tensor) for name, tensor in tensors.items()])
    if len(entries) > MAX_TENSORS:
        raise PatchFormatError(f"the patch has {len(entries)} tensors; the limit is {MAX_TENSORS}")
    header = header_bytes(entries, manifest)
    hasher = hashlib.sha256(header)
    stream.write(header)
    for entry in entries:
        part = byte_view(tensors[entry.name])
        hasher.update(part)
        stream.write(part)
    return hasher.hexdigest()


def read_header(stream: BinaryIO, size: int) -> Header:
    """Read and check all before the tensors of a file of ``size`` bytes; PatchFormatError when it is not ours."""
    if size < 8:
        raise PatchFormatError(f"{size} bytes are too few for a safetensors file; the file is truncated or not a patch")
    prefix = _exactly(stream, 8)
    (length,) = struct.unpack("<Q", prefix)
    if not 2 <= length <= min(canonical.MAX_BYTES, size - 8):
        raise PatchFormatError(
            f"the header claims {length} bytes of a file of {size}; the file is truncated or not a patch"
        )
    raw = _exactly(stream, length)
    fields, text = _fields(raw)
    if len(fields) > MAX_TENSORS:
        raise PatchFormatError(f"the file claims {len(fields)} tensors; the limit is {MAX_TENSORS}")
    entries = file_order([_entry(name, value) for name, value in fields.items()])
    offset = 0
    for entry in entries:
        claimed = fields[entry.name]["data_offsets"]
        offset += entry.nbytes
        if claimed != [offset - entry.nbytes, offset] or any(type(number) is not int for number in claimed):
            raise PatchFormatError("the tensors overlap, leave gaps or are not in the order of format 1")
    if (expected := 8 + length + offset) != size:
        raise PatchFormatError(f"the file has {size} bytes where its header describes {expected}; it is cut or padded")
    return Header(entries, canonical.loads(text, "the manifest"), prefix + raw)


def _fields(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """The header's entries without the metadata, and the manifest in there."""
    text = raw.rstrip(b" ")
    if len(text) + -len(text) % 8 != len(raw):
        raise PatchFormatError("the header does not end as format 1 says: spaces up to the next multiple of 8")
    fields = canonical.loads(text, "the header")
    if not isinstance(fields, dict):
        raise PatchFormatError("the header is not a JSON object; the file is not a safetensors file")
    return fields, _metadata(fields)


def _metadata(fields: dict[str, Any]) -> bytes:
    metadata = fields.pop(METADATA, None)
    if not isinstance(metadata, dict) or set(metadata) != {KEY} or not isinstance(metadata[KEY], str):
        raise PatchFormatError(f"the metadata is not the one key {KEY!r} with a manifest; it is not a kedit patch")
    text: str = metadata.pop(KEY)
    return text.encode()


def _entry(name: str, value: Any) -> TensorEntry:
    check_name(name)
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise PatchFormatError(f"tensor {name!r} must have dtype, shape and data_offsets, and nothing else")
    dtype, shape = value["dtype"], value["shape"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise PatchFormatError(f"tensor {name!r} has a dtype that format 1 does not know; it knows {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not valid_shape(shape):
        raise PatchFormatError(
            f"tensor {name!r} has no valid shape: at most {MAX_RANK} numbers, none negative, and no more than "
            f"{MAX_ELEMENTS} elements"
        )
    return TensorEntry(name, DTYPES[dtype], tuple(shape))


def read_tensors(stream: BinaryIO, header: Header, hasher: Any) -> dict[str, Tensor]:
    """The tensors that follow a checked header; every byte goes through ``hasher``. Memory: the tensors.

    Raises PatchFormatError, also for a file that has grown meanwhile, and before anything is allocated for one that
    does not fit into the memory of this machine.
    """
    check_memory(sum(entry.nbytes for entry in header.entries))
    tensors = {}
    for entry in header.entries:
        try:
            tensor = torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
        except RuntimeError as error:
            raise PatchFormatError(
                f"there is no memory for the {entry.nbytes} bytes of tensor {entry.name!r}"
            ) from error
        if entry.nbytes:
            view = byte_view(tensor)
            _fill(stream, view)
            hasher.update(view)
            if entry.dtype == torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
                raise PatchFormatError(f"tensor {entry.name!r} holds bytes that are neither true nor false")
        tensors[entry.name] = tensor
    if stream.read(1):
        raise PatchFormatError("the file grew while it was read; is something else writing to it?")
    return tensors


def check_memory(needed: int) -> None:
    """PatchFormatError when ``needed`` bytes cannot be had: a file of terabytes may take no room on a disk."""
    if needed > _SMALL and needed > (limit := _memory()):
        raise PatchFormatError(
            f"its tensors take {needed} bytes of memory, and {limit} can be had here now; use a larger machine"
        )


def _memory() -> int:
    """Bytes of memory that this process can still have: the machine's, or less where a limit is set."""
    limits = [int(psutil.virtual_memory().available + psutil.swap_memory().free)]
    for path in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):
            limits.append(int(path.read_text()))
    with suppress(ImportError, OSError, ValueError):
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        limits += [] if soft == resource.RLIM_INFINITY else [soft]
    return min(limits)


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = bytearray(count)
    _fill(stream, memoryview(data))
    return bytes(data)


def _fill(stream: BinaryIO, target: memoryview) -> None:
    done = 0
    while done < len(target):
        got = stream.readinto(target[done:])  # type: ignore[attr-defined]
        if not got:
            raise PatchFormatError("the file ended early; it is truncated")
        done += got
