"""What is tried: the untuned settings, and those that differ from them in a few fields. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from typing import Any

from attrs import frozen

from kedit_core.errors import HyperParamsError, InputError
from kedit_core.hparams import HyperParams, parse_override
from kedit_methods_locate.tuning.grids import Changes, Grid, Layers

MOST = 24  # candidates of a grid that nobody asked for


@frozen
class Candidate:
    """Settings to try.

    Attributes:
        number: 0 for the untuned settings; among equals the lower number wins.
        changes: field -> value where they differ from the untuned ones.
        hparams: all of them.
    """

    number: int
    changes: Changes
    hparams: HyperParams

    @property
    def label(self) -> str:
        """The differences, as ``-p`` takes them."""
        return label(self.changes)


@frozen
class Refused:
    """Settings that do not go together, and what the method says of them."""

    changes: Changes
    reason: str

    @property
    def label(self) -> str:
        """The differences, as ``-p`` takes them."""
        return label(self.changes)


@frozen
class Candidates:
    """All that is tried, the untuned settings first; what is refused; and how many a grid left out for being far."""

    tried: tuple[Candidate, ...]
    refused: tuple[Refused, ...] = ()
    left_out: int = 0


def label(changes: Changes) -> str:
    """``layer=1 v_lr=0.2``; words for no difference at all."""
    texts = [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in changes.items()]
    return " ".join(texts).replace(", ", ",") or "(untuned)"


def from_grid(
    untuned: HyperParams, grid: Grid, layers: Layers, fixed: Collection[str] = (), most: int = MOST
) -> Candidates:
    """The candidates of a declared grid, at most ``most``: those with the fewest and likeliest changes.

    ``fixed``: fields that stay as they are, since the user has set them.
    """
    axes = [
        [{name: value for name, value in each.items() if name not in fixed} for each in axis.values(untuned, layers)]
        for axis in grid.axes
    ]
    found = _combined(untuned, axes)
    return Candidates(found.tried[:most], found.refused, max(len(found.tried) - most, 0))


def from_tries(untuned: HyperParams, tries: Mapping[str, Sequence[Any]]) -> Candidates:
    """All combinations of the values given, and the untuned settings.

    Raises:
        InputError: nothing to try.
        HyperParamsError: a field the method does not have, or a value that no combination can have.
    """
    if empty := [name for name, values in tries.items() if not values]:
        raise InputError(f"there is no value of {empty[0]} to try; write for example {empty[0]}=1,2")
    if not tries:
        raise InputError("there is nothing to try; name a setting and its values")
    tries = {name: [list(v) if isinstance(v, tuple) else v for v in values] for name, values in tries.items()}
    found = _combined(untuned, [[{name: value} for value in values] for name, values in tries.items()])
    usable = [candidate.hparams.to_dict() for candidate in found.tried]
    faults = [
        reason
        for name, values in tries.items()
        for value in values
        for reason in _faults_of(untuned, name, value)
        if not any(_same(each.get(name), value) for each in usable)
    ]
    if faults:
        raise HyperParamsError("what is to be tried", list(dict.fromkeys(faults)))
    return found


def read_tries(texts: Sequence[str]) -> dict[str, list[Any]]:
    """``["layer=0,1", "v_lr=0.1"]`` -> field -> values, read as ``-p`` reads them; a field given again gets more.

    Raises InputError for what is not of the form ``key=value,value``.
    """
    tries: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not name.strip():
            raise InputError(f"--try {text} is not of the form key=value,value; write for example --try layer=0,1,2")
        try:
            _, read = parse_override(f"{name}=[{values}]")
        except HyperParamsError as error:
            raise InputError(f"--try {text} cannot be read: {error.faults[0]}") from error
        tries.setdefault(name.strip(), []).extend(read)
    return tries


def _combined(untuned: HyperParams, axes: Sequence[Sequence[Changes]]) -> Candidates:
    """One value of each axis in every combination, without repetitions; nearest to the first values first."""
    cls, base = type(untuned), untuned.to_dict()
    tried = [Candidate(0, {}, untuned)]
    refused: list[Refused] = []
    seen = [base]
    places = product(*(range(len(axis)) for axis in axes))
    for place in sorted(places, key=lambda place: (sum(map(bool, place)), sum(place))):
        changes = {name: value for axis, i in zip(axes, place, strict=True) for name, value in axis[i].items()}
        try:
            made = cls.from_dict({**base, **changes})
        except HyperParamsError as error:
            refused.append(Refused(changes, "; ".join(error.faults)))
            continue
        values = made.to_dict()
        if not any(_same(values, each) for each in seen):
            seen.append(values)
            named = dict.fromkeys([*changes, *values])  # in the order asked for
            differing = {name: values[name] for name in named if not _same(values[name], base[name])}
            tried.append(Candidate(len(tried), differing, made))
    return Candidates(tuple(tried), tuple(refused))


def _faults_of(untuned: HyperParams, name: str, value: Any) -> tuple[str, ...]:
    """What is wrong with one value by itself."""
    try:
        type(untuned).from_dict({**untuned.to_dict(), name: value})
    except HyperParamsError as error:
        return error.faults
    return ()


def _same(one: Any, other: Any) -> bool:
    """Equal, where 1 and 1.0 are the same setting and 1 and true are not."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)
