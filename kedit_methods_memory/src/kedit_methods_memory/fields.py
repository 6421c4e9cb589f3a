"""Values read from a patch's JSON, held against the type that they must have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def typed(values: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """``values[name]``, which is of one of these types; a bool is no number.

    Raises KeyError when it is not there, TypeError when it is something else.
    """
    value = values[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise TypeError(f"{name} is {value!r:.60}")
    return value


def mapping(value: Any, name: str) -> Mapping[str, Any]:
    """A JSON object. Raises TypeError for anything else."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is {value!r:.60}")
    return value
