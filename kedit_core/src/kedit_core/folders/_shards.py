"""Weight files as bytes: reading one tensor at a time, and copying a file with a few tensors changed.

A changed tensor keeps its dtype and shape, so the header and every other byte of a safetensors file are copied as they
are; undoing a change then gives the very same file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from attrs import frozen
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kedit_core.errors import InputError

_CHUNK = 8 << 20
_HEADER_LIMIT = 100_000_000  # safetensors' own limit
_LENGTH_BYTES = 8

FLOAT_DTYPES: Mapping[str, torch.dtype] = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}

OnBytes = Callable[[int], None]


@frozen
class Entry:
    """One tensor of a safetensors file: dtype as the file calls it, shape, and byte range within the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size of the tensor's bytes."""
        return self.end - self.begin


@frozen
class Shard:
    """A safetensors file, opened for reading tensors one at a time."""

    path: Path
    entries: Mapping[str, Entry]

    @classmethod
    def open(cls, path: Path) -> Shard:
        """Read the header of ``path``.

        Raises:
            InputError: the file is missing, truncated or not safetensors.
        """
        try:
            with safe_open(path, framework="pt"):  # the library's own check of lengths, offsets and dtypes
                pass
            return cls(path, _read_entries(path))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not a readable safetensors file ({error}); get the file again") from error

    def raw(self, name: str) -> Iterator[bytes]:
        """The bytes of one tensor, in pieces."""
        entry = self.entries[name]
        with self.path.open("rb") as file:
            file.seek(entry.begin)
            yield from _pieces(file, entry.nbytes, self.path)

    def digest(self, name: str) -> str:
        """SHA-256 of one tensor's bytes as stored."""
        return digest_of(self.raw(name))

    def tensor(self, name: str) -> Tensor:
        """One tensor, in memory of its own."""
        with safe_open(self.path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name).clone()
        return tensor

    def copy(self, out: Path, changes: Mapping[str, Callable[[], Iterable[bytes]]], on_bytes: OnBytes) -> None:
        """Write this file to ``out`` with the bytes of some tensors replaced by others of the same length.

        Raises:
            InputError: the new bytes of a tensor are not as many as the old.
        """
        with out.open("wb") as target:
            with self.path.open("rb") as source:
                for piece in _pieces(source, self.path.stat().st_size, self.path):
                    target.write(piece)
                    on_bytes(len(piece))
            for name, pieces in changes.items():
                entry = self.entries[name]
                target.seek(entry.begin)
                written = sum(target.write(piece) for piece in pieces())
                if written != entry.nbytes:
                    raise InputError(
                        f"{name} has {entry.nbytes} bytes in {self.path}, not {written}; nothing was changed"
                    )
            sync(target)


def copy_file(source: Path, out: Path, on_bytes: OnBytes) -> None:
    """Copy a file of any kind, following symbolic links."""
    with source.open("rb") as reading, out.open("wb") as target:
        for piece in _pieces(reading, source.stat().st_size, source):
            target.write(piece)
            on_bytes(len(piece))
        sync(target)


def write_file(out: Path, data: bytes) -> None:
    """Write ``data`` to ``out`` and have it on the disk before returning."""
    with out.open("wb") as target:
        target.write(data)
        sync(target)


def write_shard(out: Path, entries: Mapping[str, Entry], raw: Callable[[str], Iterable[bytes]]) -> str:
    """Write a safetensors file from pieces, never holding more than one; the SHA-256 of the file is returned.

    Of ``entries`` only dtype, shape and size count; ``raw(name)`` gives a tensor's bytes.
    """
    # larger items first, then by name: every tensor is aligned to its own item size, and the bytes are deterministic
    order = sorted(entries, key=lambda name: (-_item_size(entries[name]), name))
    header: dict[str, Any] = {}
    offset = 0
    for name in order:
        entry = entries[name]
        header[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    hasher = hashlib.sha256()
    with out.open("wb") as target:
        for piece in _chain(len(text).to_bytes(_LENGTH_BYTES, "little"), text, order, raw):
            hasher.update(piece)
            target.write(piece)
        sync(target)
    return hasher.hexdigest()


def digest_of(pieces: Iterable[bytes]) -> str:
    """SHA-256 of bytes given in pieces."""
    hasher = hashlib.sha256()
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(file: BinaryIO) -> None:
    """Have what was written on the disk, so that a later rename never shows a file without its content."""
    file.flush()
    os.fsync(file.fileno())


def _chain(length: bytes, text: bytes, order: Iterable[str], raw: Callable[[str], Iterable[bytes]]) -> Iterator[bytes]:
    yield length
    yield text
    for name in order:
        yield from raw(name)


def _item_size(entry: Entry) -> int:
    count = 1
    for size in entry.shape:
        count *= size
    return entry.nbytes // count if count else 0


def _pieces(file: BinaryIO, size: int, path: Path) -> Iterator[bytes]:
    left = size
    while left:
        piece = file.read(min(left, _CHUNK))
        if not piece:
            raise InputError(f"{path} ended {left} bytes early while it was read; is something else writing to it?")
        left -= len(piece)
        yield piece


def _read_entries(path: Path) -> dict[str, Entry]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > _HEADER_LIMIT:
            raise ValueError(f"a header of {length} bytes")
        header: dict[str, Any] = json.loads(file.read(length))
    start = _LENGTH_BYTES + length
    return {
        name: Entry(
            value["dtype"],
            tuple(value["shape"]),
            start + value["data_offsets"][0],
            start + value["data_offsets"][1],
        )
        for name, value in header.items()
        if name != "__metadata__"
    }
