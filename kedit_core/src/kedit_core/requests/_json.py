"""JSON and JSON Lines, record by record, each with the line where it starts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from kedit_core.requests._records import Record

_SPACE = re.compile(r"[ \t\n\r]*")


def read_json(text: str) -> Iterator[Record]:
    """One object, or an array whose elements are requests."""
    start = _skip(text, 0)
    if start == len(text):
        return
    if text[start] == "[":
        yield from _elements(text, start + 1)
        return
    data, faults, end = decode(text, start)
    place = "" if faults else f"line {_line(text, start)}"
    rest = _skip(text, end)
    if not faults and rest < len(text):
        line = _line(text, rest)
        hint = "; if each line is a request, call the file .jsonl" if text[rest] == "{" else ""
        faults = (f"line {line}: something follows the end of the JSON{hint}",)
        place = ""
    yield Record(place, data, faults)


def read_json_lines(text: str) -> Iterator[Record]:
    """One object on each line; empty lines are passed over."""
    # lines end at line feeds only: JSON text may hold the other characters that str.splitlines divides at
    for number, line in enumerate(text.split("\n"), start=1):
        start = _skip(line, 0)
        if start == len(line):
            continue
        data, faults, end = decode(line, start)
        if not faults and _skip(line, end) < len(line):
            faults = ("something follows the end of the JSON; put each request on a line of its own",)
        elif not faults and isinstance(data, list):
            faults = ("is a list; if the file is one JSON array, call it .json",)
        elif faults and line[start] in "[{" and line.rstrip() in ("[", "{"):
            faults = (*faults, "each line must hold a whole request; if the file is one JSON text, call it .json")
        yield Record(f"line {number}", data, tuple(_without_line(fault) for fault in faults))


def _elements(text: str, at: int) -> Iterator[Record]:
    """Elements of an array from just after its bracket."""
    line, counted = _line(text, at), at
    index = 0
    at = _skip(text, at)
    if text[at : at + 1] == "]":
        yield from _after(text, at + 1)
        return
    while True:
        line, counted = line + text.count("\n", counted, at), at
        data, faults, end = decode(text, at)
        place = f"line {line} (element {index + 1})"
        if faults and end == at:
            # where the broken text goes on cannot be known
            yield Record("", None, faults)
            return
        yield Record(place, data, faults)
        index += 1
        at = _skip(text, end)
        mark = text[at : at + 1]
        if mark == "]":
            yield from _after(text, at + 1)
            return
        if mark != ",":
            found = "the file ends" if not mark else f"found {mark!r}"
            yield Record("", None, (f"line {_line(text, at)}: expected ',' or ']' after element {index}, but {found}",))
            return
        at = _skip(text, at + 1)


def _after(text: str, at: int) -> Iterator[Record]:
    at = _skip(text, at)
    if at < len(text):
        yield Record("", None, (f"line {_line(text, at)}: something follows the end of the array",))


def decode(text: str, start: int) -> tuple[Any, tuple[str, ...], int]:
    """One JSON value from ``start``: the value, its faults, and where it ends (``start`` itself when it is no JSON)."""
    faults: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, value in pairs:
            if name in made:
                faults.append(f"the field {name!a} is given twice")
            made[name] = value
        return made

    def refuse(constant: str) -> None:
        faults.append(f"{constant} is no number that JSON has")

    decoder = json.JSONDecoder(object_pairs_hook=unique, parse_constant=refuse)
    try:
        data, end = decoder.raw_decode(text, start)
    except json.JSONDecodeError as error:
        return None, (f"line {error.lineno}: is no JSON at column {error.colno} ({error.msg})",), start
    except RecursionError:
        return None, (f"line {_line(text, start)}: is nested too deeply",), start
    except ValueError:
        return None, (f"line {_line(text, start)}: has a number of too many digits",), start
    return data, tuple(dict.fromkeys(faults)), end


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _without_line(fault: str) -> str:
    # a line of JSON Lines knows its number; the decoder saw that line alone
    return fault.removeprefix("line 1: ")
