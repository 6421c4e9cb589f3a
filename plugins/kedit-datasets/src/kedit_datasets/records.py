"""Records of a dataset's file, read field by field; what is wrong is told with the record and the field.

A reader takes each record's fields through :class:`Fields`: values of the wrong type, missing and empty ones become
faults, and all faults of a file are told at once. What a dataset's sheet lets a reader drop is counted, not told.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, overload

from attrs import define, evolve, field

from kedit_core.errors import RequestError
from kedit_core.requests import EditRequest, Probe, request_faults
from kedit_datasets.fields import Dropped, Fault, Fields, Json, kind_of
from kedit_datasets.files import LFS_MARK, digest, file_of, json_document, json_records

__all__ = [
    "LFS_MARK",
    "Convert",
    "Dropped",
    "Fields",
    "Json",
    "Loaded",
    "Report",
    "convert_records",
    "digest",
    "file_of",
    "json_document",
    "json_records",
    "probe",
    "read_records",
]

_LOG = logging.getLogger(__name__)


@define
class Report:
    """What a file held: counts for the log, and for whoever wants to know.

    Attributes:
        records: in the file.
        requests: made of them.
        dropped: why records or parts of them were left out -> how often.
        fields: field of a record -> in how many records it is.
        files: name of each file read -> its SHA-256.
        notes: what is odd but was taken, each once.
    """

    dataset: str
    records: int = 0
    requests: int = 0
    dropped: Counter[str] = field(factory=Counter)
    fields: Counter[str] = field(factory=Counter)
    files: dict[str, str] = field(factory=dict)
    notes: list[str] = field(factory=list)

    def __str__(self) -> str:
        left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        told = [f"{self.records} records, {self.requests} requests", *self.notes]
        return f"{self.dataset}: " + "; ".join(told + ([f"left out: {left_out}"] if left_out else []))


class Loaded(Sequence[EditRequest]):
    """Requests of a dataset, with what was met on the way.

    Attributes:
        requests: in the file's order.
        report: counts, what was left out and why, SHA-256 of the files.
    """

    def __init__(self, requests: Iterable[EditRequest], report: Report) -> None:
        self.requests = tuple(requests)
        self.report = report

    @overload
    def __getitem__(self, index: int) -> EditRequest: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[EditRequest]: ...
    def __getitem__(self, index: int | slice) -> EditRequest | Sequence[EditRequest]:
        return self.requests[index]

    def __len__(self) -> int:
        return len(self.requests)


Convert: TypeAlias = Callable[[Fields, int], Sequence[EditRequest]]


def read_records(name: str, path: Path, convert: Convert, report: Report | None = None) -> Loaded:
    """The requests of all records of a file.

    Args:
        name: of the dataset.
        path: a ``.json`` array or ``.jsonl`` file.
        convert: one record, with its number from 0, to requests; it may raise :class:`Dropped`.

    Raises:
        InputError: no such file, or no JSON.
        RequestError: all faults, each with its record (from 0, as the field counts) and field.
    """
    report = report or Report(name)
    report.files[path.name] = digest(path)
    return convert_records(name, json_records(path), convert, report, str(path))


def convert_records(name: str, records: Iterable[Json], convert: Convert, report: Report, source: str) -> Loaded:
    """:func:`read_records` of records at hand."""
    requests: list[EditRequest] = []
    faults: list[str] = []
    cases: set[str | None] = {None}
    for index, record in enumerate(records):
        report.records += 1
        if not isinstance(record, Mapping):
            faults.append(f"record {index} is {kind_of(record)}, expected an object")
            continue
        report.fields.update(str(key) for key in record)
        try:
            made = _converted(record, index, name, convert)
        except Dropped as left_out:
            report.dropped[left_out.reason] += 1
        except Fault as fault:
            faults += [f"record {index}{_id(record)}: {told}" for told in fault.args]
        else:
            requests += _apart(made, cases, index, report)
    if faults:
        raise RequestError(f"{source}, read as {name}", faults)
    report.requests = len(requests)
    _LOG.info("%s; fields: %s", report, ", ".join(f"{key} {count}" for key, count in report.fields.items()))
    return Loaded(requests, report)


def probe(fields: Fields, prompt: str, answers: Sequence[str], **meta: Json) -> Probe:
    """A probe; ``meta`` values that are None or False are left out (0 and empty ones are kept)."""
    kept = {name: value for name, value in meta.items() if value is not None and value is not False}
    return Probe(prompt=prompt, answers=tuple(answers), meta=kept)


def _converted(record: Mapping[str, Json], index: int, name: str, convert: Convert) -> list[EditRequest]:
    """Requests of a record, with its dataset, its digest and the fields that nobody asked for."""
    raw_digest = _digest_of(record)
    fields = Fields(record)
    made = convert(fields, index)
    if faults := [told for request in made for told in request_faults(request)]:
        raise Fault(*dict.fromkeys(faults))
    meta: dict[str, Json] = {"dataset": name, "raw_digest": raw_digest}
    if unknown := fields.unknown():
        meta["raw"] = unknown
    return [evolve(request, meta={**meta, **request.meta}) for request in made]


def _apart(made: Sequence[EditRequest], cases: set[str | None], index: int, report: Report) -> Sequence[EditRequest]:
    """The requests, with the record's number in case ids that an earlier record has: two records are two cases."""
    own = {request.case_id for request in made} - {None}
    if own & cases:
        note = "there are ids that several records have; the later ones' end with their record's number"
        report.notes += [note] if note not in report.notes else []
        made = [evolve(r, case_id=f"{r.case_id}#{index}") if r.case_id in own & cases else r for r in made]
    cases |= own
    return made


def _digest_of(record: Mapping[str, Json]) -> str:
    """SHA-256 of a record's canonical JSON, which every record that can be written to a UTF-8 file has."""
    try:
        raw = json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except ValueError as error:
        raise Fault(*_unwritable(record, "")) from error
    return hashlib.sha256(raw).hexdigest()


def _unwritable(value: Json, path: str) -> Iterator[str]:
    """What no UTF-8 JSON file can hold, though Python reads it: half characters, and numbers that are not finite."""
    if isinstance(value, str) and value != value.encode(errors="ignore").decode():
        yield f"{path} has half a character (a lone surrogate)"
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{path} is {value!r}, but numbers must be finite"
    elif isinstance(value, Mapping):
        for key, each in value.items():
            shown = f"{path}.{key}" if path else key or "''"
            if key != key.encode(errors="ignore").decode():
                yield f"{shown!a} is a name with half a character (a lone surrogate)"
            else:
                yield from _unwritable(each, shown)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _unwritable(each, f"{path}[{index}]")


def _id(record: Mapping[str, Json]) -> str:
    known = next((record[key] for key in ("case_id", "id") if isinstance(record.get(key), str | int)), None)
    return "" if known is None else f" (id {str(known).encode('ascii', 'backslashreplace').decode():.40})"
