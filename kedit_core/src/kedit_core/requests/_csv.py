"""CSV with a header: text fields as they are, everything else as JSON in the cell."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from kedit_core.requests._json import decode
from kedit_core.requests._records import Record
from kedit_core.requests._strict import unknown_field
from kedit_core.requests._types import EditRequest

_TEXT = ("prompt", "target_new", "subject", "ground_truth", "case_id", "kind")
_DOTTED = ("locality", "portability", "meta")
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs"}


def read_csv(text: str) -> Iterator[Record]:
    """One request a row; a row may span lines when a cell is quoted."""
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    end = 0
    while True:
        start = end + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            remedy = "cells with commas, quotes or line ends are quoted, and quotes in them doubled"
            yield Record(f"line {start}", None, (f"is no CSV ({error}); {remedy}",))
            return
        end = rows.line_num
        if row is None:
            return
        if not any(cell.strip() for cell in row):
            continue
        if header is None:
            header = [cell.strip() for cell in row]
            if faults := _header_faults(header):
                yield Record(f"line {start}", None, tuple(faults))
                return
        else:
            yield _record(f"line {start}", header, row)


def _header_faults(header: Sequence[str]) -> list[str]:
    if len(header) == 1:
        for separator, name in _OTHER_SEPARATORS.items():
            if separator in header[0]:
                return [f"the columns are separated by {name}; use commas"]
    faults = [f"column {number} has no name" for number, name in enumerate(header, start=1) if not name]
    faults += [f"the column {name!r} is there twice" for name in dict.fromkeys(header) if header.count(name) > 1]
    known = [each.name for each in attrs.fields(EditRequest)]
    for name in filter(None, header):
        field, dot, key = name.partition(".")
        if dot and (field not in _DOTTED or not key):
            faults.append(f"column {name!r}: only {', '.join(_DOTTED)} have names after a dot")
        elif field not in known:
            faults.append(unknown_field(name, EditRequest) + f", as the column {'meta.' + name!r}")
        elif dot and field in header:
            faults.append(f"column {name!r}: the column {field!r} holds the whole of it already")
    missing = [name for name in ("prompt", "target_new") if name not in header]
    return faults + [f"the column {name!r} is missing; the first line must name the columns" for name in missing]


def _record(place: str, header: Sequence[str], row: Sequence[str]) -> Record:
    if len(row) != len(header):
        return Record(place, None, (f"has {len(row)} cells, but there are {len(header)} columns",))
    data: dict[str, Any] = {}
    faults: list[str] = []
    for name, cell in zip(header, row, strict=True):
        field, dot, key = name.partition(".")
        # an empty cell is a field that is not given; an empty prompt is told as such
        if not cell.strip() and field not in ("prompt", "target_new"):
            continue
        if field in _TEXT or (field == "meta" and dot):
            value: Any = cell
        else:
            value, told = _json_cell(cell)
            if told:
                faults += [f"{name}: {fault}" for fault in told]
                continue
        if dot:
            data.setdefault(field, {})[key] = value
        else:
            data[field] = value
    return Record(place, data, tuple(faults))


def _json_cell(cell: str) -> tuple[Any, tuple[str, ...]]:
    cell = cell.strip()
    value, faults, end = decode(cell, 0)
    if not faults and end < len(cell):
        faults = ("something follows the end of the JSON",)
    if faults and cell[0] not in "[{":
        return None, ('is no JSON; write a list such as ["one", "two"]',)
    return value, tuple(fault.removeprefix("line 1: ") for fault in faults)
