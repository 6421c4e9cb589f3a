"""Files of requests: JSON, JSON Lines and CSV, with every fault of a file told at once, by line and field."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from os import PathLike, fspath
from pathlib import Path

from kedit_core.errors import RequestError
from kedit_core.requests._checks import request_faults, value_faults
from kedit_core.requests._csv import read_csv
from kedit_core.requests._json import read_json, read_json_lines
from kedit_core.requests._records import Record
from kedit_core.requests._strict import read_request, request_to_dict
from kedit_core.requests._types import EditRequest

_READERS: Mapping[str, Callable[[str], Iterable[Record]]] = {
    ".json": read_json,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".csv": read_csv,
}
_WIDE_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x00\x00\xfe\xff": "UTF-32"}


def load_requests(path: str | PathLike[str], *, needs_subject: bool = False) -> list[EditRequest]:
    """The requests of a ``.json``, ``.jsonl`` (or ``.ndjson``) or ``.csv`` file (docs/requests.md).

    Args:
        path: the file; its ending tells the format.
        needs_subject: refuse requests whose subject is missing or does not occur in the prompt.

    Raises:
        RequestError: the file cannot be read, or has faults; all of them are told, each with line and field.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise RequestError(fspath(path), [f"cannot be read: {what}"]) from error
    return parse_requests(data, file.suffix.lower(), source=fspath(path), needs_subject=needs_subject)


def parse_requests(
    data: bytes, ending: str, *, source: str = "the edit requests", needs_subject: bool = False
) -> list[EditRequest]:
    """As :func:`load_requests`, of bytes at hand; ``ending`` (``.jsonl``) tells the format."""
    if ending not in _READERS:
        endings = ", ".join(_READERS)
        raise RequestError(source, [f"files that end in {ending!r} are not read; the endings known are {endings}"])
    requests, faults = [], []
    for record in _READERS[ending](_text(data, source)):
        told = list(record.faults)
        if record.data is not None or not told:
            request, more = read_request(record.data, needs_subject=needs_subject)
            told += more
            if request is not None:
                requests.append(request)
        faults += [f"{record.place}, {fault}" if record.place else fault for fault in told]
    if not requests and not faults:
        faults = ["holds no request"]
    if faults:
        raise RequestError(source, faults)
    return requests


def dump_requests(requests: Iterable[EditRequest], path: str | PathLike[str]) -> None:
    """Write requests as JSON Lines, one a line, in the shape that :func:`load_requests` reads.

    Raises:
        RequestError: a request that could not be read back, such as one with an empty prompt or with something in
            ``meta`` that JSON does not have; nothing is written then.
    """
    lines, faults = [], []
    for number, request in enumerate(requests, start=1):
        told = []
        try:
            data = request_to_dict(request)
            told = [*value_faults(data), *request_faults(request)]
            lines.append(json.dumps(data, ensure_ascii=False))
        except (TypeError, ValueError, RecursionError) as error:
            told.append(f"cannot be written as JSON: {error}")
        faults += [f"request {number}, {fault}" for fault in told]
    if faults:
        raise RequestError("the edit requests", faults)
    try:
        Path(path).write_bytes("".join(f"{line}\n" for line in lines).encode())
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise RequestError(fspath(path), [f"cannot be written: {what}"]) from error


def _text(data: bytes, source: str) -> str:
    """The text of a file, which must be UTF-8; a mark at its start is taken away."""
    for mark, name in _WIDE_ENCODINGS.items():
        if data.startswith(mark):
            raise RequestError(source, [f"is {name} text; save the file as UTF-8"])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise RequestError(source, [f"line {line}: byte 0x{byte:02x} is no UTF-8; save the file as UTF-8"]) from None
