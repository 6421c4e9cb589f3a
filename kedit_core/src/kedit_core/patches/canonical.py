"""Canonical JSON: one value, one text.

UTF-8, keys sorted by code point, separators ``,`` and ``:``, floats as Python's repr, no NaN, no duplicate keys.
Reading is bounded before anything is believed; docs/patch-format.md states the limits.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from typing import Any, NoReturn, TypeAlias

from kedit_core.errors import PatchFormatError

MAX_BYTES = 100_000_000
MAX_DEPTH = 64
MAX_MARKS = 4_000_000
MAX_NUMBER = 25  # characters; the longest canonical number has 24
MIN_INT, MAX_INT = -(2**63), 2**64 - 1

_STEP = 80  # characters of a key that a message shows
_Path: TypeAlias = tuple[Any, str | int] | None  # of a value: that of what holds it, and its key or number there


def shown(value: object) -> str:
    """``repr(value)``, cut where it grows long: a message never repeats megabytes of what somebody sent."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = _STEP
    short.maxlevel = 2
    return short.repr(value)


def plain(value: Any, what: str) -> Any:
    """A deep copy of ``value`` in plain JSON types (tuples become lists).

    Raises PatchFormatError for anything JSON cannot hold exactly: other types, keys that are not strings, NaN and
    infinities, integers beyond 64 bits, lone surrogates, nesting deeper than 64 levels. Time: linear in the value.
    """
    return _plain(value, what, None, 0)


def _plain(value: Any, what: str, path: _Path, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, what, path)
    if isinstance(value, int):
        if not MIN_INT <= value <= MAX_INT:
            raise _fault(what, path, "holds an integer that does not fit in 64 bits; store it as text")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _fault(what, path, f"holds {float(value)!r}, which JSON has no number for; use null or a string")
        return float(value)
    if depth == MAX_DEPTH:
        raise _fault(what, path, f"is nested deeper than {MAX_DEPTH} levels; flatten it")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise _fault(what, path, f"has a key of type {type(key).__name__}; keys are strings")
        return {_text(key, what, path): _plain(inner, what, (path, key), depth + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, what, (path, i), depth + 1) for i, inner in enumerate(value)]
    raise _fault(what, path, f"holds a {type(value).__name__}, which is not JSON; use plain values")


def _text(value: str, what: str, path: _Path) -> str:
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise _fault(what, path, "holds text that is not valid Unicode; remove the lone surrogates") from None
    return str(value)


def _fault(what: str, path: _Path, problem: str) -> PatchFormatError:
    """The place is put into words only here: its names may be long, and there may be a million places."""
    where = ""
    while path is not None:
        path, step = path
        where = (f"[{step}]" if isinstance(step, int) else f".{step[:_STEP]}") + where
    return PatchFormatError(f"{what}{where} {problem}".encode(errors="backslashreplace").decode())


def dumps(value: Any, what: str) -> bytes:
    """The canonical JSON of ``value``."""
    return _dump(plain(value, what))


def _dump(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def loads(data: bytes, what: str) -> Any:
    """The value that ``data`` is the canonical JSON of.

    Raises PatchFormatError for text that is not JSON, not canonical, or beyond the limits.
    """
    if len(data) > MAX_BYTES:
        raise PatchFormatError(f"{what} is {len(data)} bytes long; the limit is {MAX_BYTES}")
    # every JSON value but the first is preceded by one of these, so counting them bounds what parsing can allocate
    if sum(data.count(mark) for mark in (b",", b"[", b"{", b":")) > MAX_MARKS:
        raise PatchFormatError(f"{what} holds more than {MAX_MARKS} JSON values")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_whole,
            parse_float=_broken,
        )
    except PatchFormatError as error:
        raise PatchFormatError(f"{what} is not valid: {error}") from None
    except (ValueError, RecursionError) as error:
        raise PatchFormatError(f"{what} is not JSON that kedit reads: {type(error).__name__}") from None
    value = plain(value, what)
    if _dump(value) != data:
        raise PatchFormatError(f"{what} is not canonical JSON, so the file was not written as format 1 says")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise PatchFormatError(f"the key {shown(twice)} is given twice")
    return found


def _whole(text: str) -> int:
    return int(_short_number(text))


def _broken(text: str) -> float:
    return float(_short_number(text))


def _short_number(text: str) -> str:
    """Numbers of a million digits take long to read, and no canonical number has many."""
    if len(text) > MAX_NUMBER:
        raise PatchFormatError(f"a number has {len(text)} characters; no number of format 1 has more than {MAX_NUMBER}")
    return text


def _no_constant(name: str) -> NoReturn:
    raise PatchFormatError(f"{name} is not a JSON number")
