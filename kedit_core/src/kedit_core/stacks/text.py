"""The YAML of stack files: a reader that is bounded and believes nothing, and a writer.

Read is a small part of YAML 1.2: mappings, lists and scalars by the core schema. Anchors, aliases, tags and several
documents are refused, so that no short text stands for a large value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from kedit_core.hparams import scalar

LARGEST = 1 << 20  # bytes; some thousands of patches
_SHOWN = 60
_DEEPEST = 4  # the file, its patches, one of them, a value
_PLAIN = re.compile(r"[A-Za-z0-9./_~]([\w./:@+~ -]*[\w./@+~-])?", re.ASCII)


def read_yaml(data: bytes) -> Any:
    """What the one document in ``data`` holds; None for an empty one.

    Raises ValueError, whose text says what was wrong and in which line.
    """
    if len(data) > LARGEST:
        raise ValueError(f"it has {len(data)} bytes; a stack file has at most {LARGEST}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line}: is not UTF-8 text") from None
    try:
        return _Reader(yaml.parse(text, Loader=yaml.SafeLoader)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        told = ", ".join(filter(None, (error.context, error.problem)))
        raise ValueError(f"{f'line {mark.line + 1}: ' if mark else ''}{told or 'is not YAML'}") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from None
    except (ValueError, OverflowError):  # PyYAML's own reading of \U escapes and of the %YAML line
        raise ValueError("an escape or a number in it is beyond what YAML has") from None


def write_yaml(fields: Mapping[str, Any]) -> str:
    """A mapping of texts, whole numbers and lists of flat mappings, as YAML that :func:`read_yaml` gives back."""
    lines = []
    for key, value in fields.items():
        if not isinstance(value, list):
            lines.append(f"{key}: {_written(value)}")
            continue
        lines.append(f"{key}:" if value else f"{key}: []")
        for each in value:
            pairs = [f"{inner}: {_written(text)}" for inner, text in each.items()]
            lines += [f"  {'- ' if number == 0 else '  '}{pair}" for number, pair in enumerate(pairs)]
    return "\n".join(lines) + "\n"


def _written(value: str | int) -> str:
    if not isinstance(value, str):
        return str(value)
    if _PLAIN.fullmatch(value) and isinstance(scalar(value), str) and ": " not in value:
        return value
    # YAML's double-quoted style knows JSON's escapes, but not surrogate pairs
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in quoted)


class _Reader:
    """Builds values from PyYAML's events, in one pass."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events

    def document(self) -> Any:
        next(self._events)  # the stream's start
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        value = self._value(next(self._events), 0)
        next(self._events)  # the document's end
        if not isinstance(event := next(self._events), yaml.StreamEndEvent):
            raise _fault(event, "a second document begins; a stack file holds one")
        return value

    def _value(self, event: Any, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _fault(event, "anchors and aliases (& and *) are not read; write the value out")
        if event.tag is not None:
            raise _fault(event, f"the tag {_short(event.tag)} is not understood; leave it out")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if depth == _DEEPEST:
            raise _fault(event, "is nested too deeply")
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(inner := next(self._events), yaml.SequenceEndEvent):
                items.append(self._value(inner, depth + 1))
            return items
        return self._mapping(depth)

    def _mapping(self, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._value(event, depth + 1)
            if not isinstance(key, str):
                raise _fault(event, "a key must be text")
            if key in made:
                raise _fault(event, f"the key {_short(key)} is given twice")
            made[key] = self._value(next(self._events), depth + 1)
        return made

    def _scalar(self, event: Any) -> Any:
        try:
            return scalar(event.value) if event.style is None else event.value
        except ValueError:
            raise _fault(event, "the number has too many digits") from None


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _fault(event: Any, what: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=event.start_mark)
