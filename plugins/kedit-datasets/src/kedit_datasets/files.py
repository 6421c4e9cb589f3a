"""Files of records: JSON arrays, JSON lines and documents, with their digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kedit_core.errors import InputError
from kedit_datasets.fields import Json, kind_of

LFS_MARK = "version https://git-lfs"


def json_records(path: Path) -> Iterator[Json]:
    """The records of a JSON array or of JSON lines.

    Raises InputError for what is neither, for a Git LFS pointer, and for a file that cannot be read.
    """
    text = _text(path)
    if path.suffix in (".jsonl", ".ndjson"):
        # not splitlines, which also breaks at characters that may stand inside a JSON text
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield _decoded(line, f"line {number} of {path}")
        return
    data = _decoded(text, str(path))
    if not isinstance(data, list):
        raise InputError(f"{path} holds {kind_of(data)}, expected an array of records")
    yield from data


def json_document(path: Path) -> Json:
    """A whole JSON file that is no array of records. Raises as :func:`json_records`."""
    return _decoded(_text(path), str(path))


def digest(path: Path) -> str:
    """SHA-256 of a file. Raises InputError when it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); check the path") from error


def file_of(path: Path, split: str | None, published: Mapping[str | None, Sequence[str]]) -> Path:
    """The file that is meant: the path itself, or in a folder the one published under a split's names.

    Args:
        published: split -> names of its file; None is what a folder is read for when no split is given.

    Raises:
        InputError: the folder has none of these files.
    """
    if not path.is_dir():
        return path
    names = published.get(split, ())
    for name in names:
        if (path / name).is_file():
            return path / name
    told = f" for split {split!r}" if split else ""
    raise InputError(f"the folder {path} has no {' or '.join(names) or 'file'}{told}; give the file itself as the path")


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); give a UTF-8 file") from error
    if text.startswith(LFS_MARK):
        raise InputError(f"{path} is a Git LFS pointer, not the data; fetch it with 'git lfs pull'")
    return text


def _decoded(text: str, source: str) -> Json:
    try:
        return json.loads(text)
    # a ValueError of another kind: a number with more digits than Python reads
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} is no JSON ({error}); give the file as it was published") from error
