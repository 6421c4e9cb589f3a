"""Where the text of a statistic comes from, and which of it is taken.

A corpus is a sequence of documents with an identity: a JSON-able record that changes when the documents do, and is part
of the statistic's key.
"""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from kedit_core.contract import DatasetInfo
from kedit_core.errors import InputError
from kedit_core.forward import TokenBoundary

_SUFFIXES = (".txt", ".jsonl")


class Corpus(Protocol):
    """Documents by number, and what they are."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON-able; equal for equal documents."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> str: ...


class TextCorpus:
    """Documents in memory."""

    def __init__(self, documents: Sequence[str], name: str = "text", revision: str | None = None) -> None:
        self._documents = list(documents)
        self.name = name
        self._revision = revision

    @classmethod
    def of_dataset(cls, info: DatasetInfo) -> TextCorpus:
        """The corpus of a registered dataset. Raises InputError when it has none."""
        if info.corpus is None:
            raise InputError(f"the dataset {info.name!r} has no corpus; give a file of text with --corpus")
        return cls(list(info.corpus()), f"dataset:{info.name}", info.corpus_revision)

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Its name and revision; the digest of the documents when it states no revision."""
        return {"source": self.name, "revision": self._revision or documents_digest(self._documents)}

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> str:
        return self._documents[index]


class FileCorpus:
    """A text file (one document a line), a JSONL file (field ``text``), or a folder of such.

    Only where each document begins is held in memory. Raises InputError when there is nothing to read.
    """

    def __init__(self, path: Path, field: str = "text") -> None:
        if path.is_dir():
            self._files = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES)
        else:
            self._files = [path] if path.is_file() else []
        if not self._files:
            raise InputError(f"there is no text at {path}; give a .txt file (a document a line), .jsonl, or a folder")
        self._field = field

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """The files' digest, without their names or places."""
        whole = hashlib.sha256()
        for file in self._files:
            with file.open("rb") as stream:
                whole.update(file.suffix.encode() + hashlib.file_digest(stream, "sha256").digest())
        return {"source": "files", "field": self._field, "revision": whole.hexdigest()}

    @cached_property
    def _starts(self) -> tuple[array[int], array[int]]:
        files, offsets = array("L"), array("Q")
        for number, file in enumerate(self._files):
            offset = 0
            with file.open("rb") as stream:
                for line in stream:
                    if line.strip():
                        files.append(number)
                        offsets.append(offset)
                    offset += len(line)
        return files, offsets

    def __len__(self) -> int:
        return len(self._starts[0])

    def __getitem__(self, index: int) -> str:
        file, offset = self._files[self._starts[0][index]], self._starts[1][index]
        with file.open("rb") as stream:
            stream.seek(offset)
            line = stream.readline()
        wanted = f"a JSON object with a text in the field {self._field!r}" if file.suffix == ".jsonl" else "UTF-8 text"
        try:
            text = line.decode()
            document = json.loads(text)[self._field] if file.suffix == ".jsonl" else text.rstrip("\r\n")
            if not isinstance(document, str):
                raise TypeError(f"{self._field!r} holds {_json_name(document)}")
            document.encode()  # JSON can spell half of a character, which no tokenizer takes
            return document
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{file.name}, the line that starts at byte {offset}, is no document ({_why(error)}); "
                f"write {wanted} there"
            ) from error


def _why(error: Exception) -> str:
    """Short, whatever the line holds."""
    if isinstance(error, UnicodeDecodeError):
        return f"{error.reason} at position {error.start} of the line"
    if isinstance(error, UnicodeEncodeError):
        return error.reason
    return f"no field {error}" if isinstance(error, KeyError) else str(error)


def _json_name(value: object) -> str:
    if value is None:
        return "null"
    return "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else f"{value!r:.20}"


def documents_digest(documents: Sequence[str]) -> str:
    """SHA-256 of the documents in order."""
    whole = hashlib.sha256()
    for document in documents:
        data = document.encode()
        whole.update(len(data).to_bytes(8, "little") + data)
    return whole.hexdigest()


class Rows(Protocol):
    """Rows of token ids in a fixed order, in chunks that can be had in any order."""

    @property
    def total(self) -> int:
        """How many there are at most."""

    def chunk(self, start: int, stop: int) -> list[Sequence[int]]:
        """Rows ``start`` to ``stop``; empty documents are left out."""


class DocumentRows:
    """A corpus's sample as token rows: the first ``documents`` after shuffling by ``seed``, each cut at ``max_len``.

    The choice is that of the papers' code: indices shuffled by Python's ``random.Random(seed)``. A document keeps the
    special tokens that the tokenizer gives to any text; it is not packed with others.
    """

    def __init__(self, corpus: Corpus, tokens: TokenBoundary, documents: int, max_len: int, seed: int) -> None:
        order = list(range(len(corpus)))
        random.Random(seed).shuffle(order)
        self._corpus, self._tokens, self._max_len = corpus, tokens, max_len
        self._order = order[:documents]

    @property
    def total(self) -> int:
        """Documents in the sample."""
        return len(self._order)

    def chunk(self, start: int, stop: int) -> list[Sequence[int]]:
        """Token rows of some documents; those of which the tokenizer makes no token are left out."""
        found: list[Sequence[int]] = []
        for index in self._order[start:stop]:
            if (text := self._corpus[index]).strip():
                with suppress(InputError):
                    found.append(self._tokens.prompt(text).ids[: self._max_len])
        return found


class IdRows:
    """Token rows that are there already (text the model wrote itself)."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self._rows = list(rows)

    @property
    def total(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def chunk(self, start: int, stop: int) -> list[Sequence[int]]:
        """Some of them."""
        return self._rows[start:stop]

    def __iter__(self) -> Iterator[Sequence[int]]:
        return iter(self._rows)
