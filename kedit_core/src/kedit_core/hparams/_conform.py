"""Fitting a value from a file to a type, strictly: text is no number, 3.9 is no whole number, no number is a truth."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_WORDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
    Any: "anything",
}
_LISTS = (tuple, list, Sequence, set, frozenset)


class MisfitError(ValueError):
    """A value that is not of the type; the message completes "<field>"."""


def conform(value: Any, wanted: Any) -> Any:
    """The value as the type wants it: lists become tuples, whole numbers become floats, all else stays as it is.

    Args:
        value: as JSON or YAML gives it.
        wanted: ``bool``, ``int``, ``float``, ``str``, ``None``, ``Any``, ``Literal``, unions, and tuples, lists, sets
            and string-keyed mappings of these.

    Raises:
        MisfitError: it does not fit; says what was found and what was expected.
    """
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin is Annotated:
        return conform(value, arguments[0])
    if wanted is Any:
        return value
    if origin in (Union, types.UnionType):
        return _one_of(value, wanted, arguments)
    if origin is Literal:
        # 1 == True, so the type must be the same too
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise _misfit(value, wanted)
    if (origin or wanted) in _LISTS:
        return _list(value, wanted, origin or wanted, arguments)
    if (origin or wanted) in (dict, Mapping):
        return _mapping(value, wanted, arguments)
    return _plain(value, wanted)


def expected(wanted: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if wanted in _WORDS:
        return _WORDS[wanted]
    if origin is Annotated:
        return expected(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(expected(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if (origin or wanted) in _LISTS:
        items = [argument for argument in arguments if argument is not Ellipsis]
        if origin is tuple and Ellipsis not in arguments and items:
            return f"a list of {len(items)} items ({', '.join(map(expected, items))})"
        return f"a list (each item {expected(items[0])})" if items else "a list"
    if (origin or wanted) in (dict, Mapping):
        return "a mapping"
    return getattr(wanted, "__name__", str(wanted))


def _plain(value: Any, wanted: Any) -> Any:
    if wanted is None or wanted is type(None):
        fits = value is None
    elif wanted is float:
        if isinstance(value, int) and not isinstance(value, bool):
            return _float(value)
        fits = isinstance(value, float)
    elif wanted is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    elif wanted in (bool, str):
        fits = isinstance(value, wanted)
    else:
        raise MisfitError(f"cannot be set from a file: its type {expected(wanted)} is none that files have")
    if not fits:
        raise _misfit(value, wanted)
    if isinstance(value, float) and not math.isfinite(value):
        raise MisfitError(f"is {value!r}, but a number must be finite")
    return value


def _float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise MisfitError("is a whole number too large for a float") from None


def _one_of(value: Any, wanted: Any, choices: Sequence[Any]) -> Any:
    # the exact type first, so that 1 stays an int where int | float is wanted, whatever the order
    for choice in sorted(choices, key=lambda choice: type(value) is not choice):
        try:
            return conform(value, choice)
        except MisfitError:
            continue
    rest = [choice for choice in choices if choice not in (None, type(None))]
    if len(rest) == 1:
        # "float | None": what is wrong with the float says more
        try:
            conform(value, rest[0])
        except MisfitError as error:
            if "expected" not in str(error):
                raise
    raise _misfit(value, wanted)


def _list(value: Any, wanted: Any, kind: Any, arguments: Sequence[Any]) -> Any:
    if not isinstance(value, (list, tuple)):
        if not (kind in (set, frozenset) and isinstance(value, (set, frozenset))):
            raise _misfit(value, wanted)
        value = sorted(value, key=repr)
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise MisfitError(f"has {len(value)} items, expected {expected(wanted)}")
        types_ = list(arguments)
    else:
        types_ = [arguments[0] if arguments else Any] * len(value)
    items = [_at(f"[{index}]", item, type_) for index, (item, type_) in enumerate(zip(value, types_, strict=True))]
    return {list: list, set: frozenset, frozenset: frozenset}.get(kind, tuple)(items)


def _mapping(value: Any, wanted: Any, arguments: Sequence[Any]) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _misfit(value, wanted)
    item = arguments[1] if arguments else Any
    return {key: _at(f"[{key!r}]", each, item) for key, each in value.items()}


def _at(place: str, value: Any, wanted: Any) -> Any:
    try:
        return conform(value, wanted)
    except MisfitError as error:
        raise MisfitError(f"at {place} {error}") from None


def _misfit(value: Any, wanted: Any) -> MisfitError:
    return MisfitError(f"is {shown(value)}, expected {expected(wanted)}")


def shown(value: Any) -> str:
    """A value as messages show it: short, and with its kind where that is the point."""
    text = "null" if value is None else "true" if value is True else "false" if value is False else repr(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"the text {text}" if isinstance(value, str) else text
