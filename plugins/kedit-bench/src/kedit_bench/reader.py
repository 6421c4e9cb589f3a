"""A benchmark read from a YAML file or from flags: strictly, and with all faults at once.

Imports no torch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from attrs import field, frozen

from kedit_bench.spec import AbilitySpec, BenchSpec, DatasetSpec, MethodSpec, ModelSpec, ScenarioSpec, SpecError
from kedit_core.errors import HyperParamsError
from kedit_core.hparams import HyperParams, read_settings

S = TypeVar("S", bound=HyperParams)

_SCENARIO = re.compile(r"([a-z]+)(?::(\d+))?(?:/(\d+))?(?:@(\d+(?:,\d+)*))?")
_CLASSES: Mapping[str, type[HyperParams]] = {
    "models": ModelSpec, "methods": MethodSpec, "datasets": DatasetSpec, "scenarios": ScenarioSpec
}  # fmt: skip
_MAIN = {"models": "name", "methods": "name", "datasets": "source"}


def _not_negative(_: Any, __: Any, value: int) -> None:
    if value < 0:
        raise ValueError("it must be at least 0")


@frozen(kw_only=True)
class _Sheet(HyperParams):
    """The outermost level of a file, with the entries of its lists still to be read."""

    models: tuple[Any, ...] = ()
    methods: tuple[Any, ...] = ()
    datasets: tuple[Any, ...] = ()
    scenarios: tuple[Any, ...] = ("single",)
    protocols: tuple[str, ...] = ("generate", "teacher_forced")
    metrics: tuple[str, ...] = ()
    seed: int = field(default=0, validator=_not_negative)
    ability: Mapping[str, Any] | None = None
    baselines: bool = True


def read_spec(path: Path) -> BenchSpec:
    """The benchmark of a YAML or JSON file (docs/bench.md). Raises SpecError with every fault."""
    try:
        return spec_from(read_settings(path), str(path))
    except HyperParamsError as error:
        raise SpecError(error.source, error.faults) from error


def spec_from(data: Mapping[str, Any], source: str = "the benchmark") -> BenchSpec:
    """A benchmark from plain data; an entry of a list may be a text: a name, a source, ``sequential:100/10@1,10``.

    Raises SpecError with every fault of it.
    """
    try:
        sheet = _Sheet.from_dict(data, source)
    except HyperParamsError as error:
        raise SpecError(source, error.faults) from error
    faults: list[str] = []
    lists: dict[str, Any] = {}
    for name, cls in _CLASSES.items():
        given = getattr(sheet, name)
        if not given:
            faults.append(f"{name} is empty; name at least one")
        lists[name] = tuple(_entries(cls, name, given, faults))
    ability = None
    if sheet.ability is not None:
        ability = _made(AbilitySpec, sheet.ability, "ability", faults)
    faults += _named_twice(lists)
    faults += [
        f"datasets[{index}] names {'both source and mix' if each.mix else 'neither source nor mix'}; give one of them"
        for index, each in enumerate(lists["datasets"])
        if (each.source is None) == (not each.mix)
    ]
    if faults:
        raise SpecError(source, faults)
    rest = {name: getattr(sheet, name) for name in ("protocols", "metrics", "seed", "baselines")}
    return BenchSpec(**lists, **rest, ability=ability)


def scenario_text(text: str) -> dict[str, Any]:
    """The fields that ``sequential:100/10@1,10,100`` stands for: size, facts a round, checkpoints.

    Raises ValueError when it is not of that form.
    """
    match = _SCENARIO.fullmatch(text)
    if match is None:
        raise ValueError(f"is {text!r}; write single, batch:30, or sequential:100/10@1,10,100")
    kind, size, rounds, checkpoints = match.groups()
    found: dict[str, Any] = {"kind": kind}
    if size is not None:
        found["size"] = int(size)
    if rounds is not None:
        found["batch_size"] = int(rounds)
    if checkpoints is not None:
        found["checkpoints"] = [int(number) for number in checkpoints.split(",")]
    return found


def _entries(cls: type[S], name: str, given: Iterable[Any], faults: list[str]) -> Iterable[S]:
    for index, entry in enumerate(given):
        place = f"{name}[{index}]"
        if isinstance(entry, str):
            try:
                entry = scenario_text(entry) if name == "scenarios" else {_MAIN[name]: entry}
            except ValueError as error:
                faults.append(f"{place} {error}")
                continue
        if (made := _made(cls, entry, place, faults)) is not None:
            yield made


def _made(cls: type[S], entry: Any, place: str, faults: list[str]) -> S | None:
    if not isinstance(entry, Mapping):
        faults.append(f"{place} is {entry!r}, expected a name or a mapping")
        return None
    try:
        return cls.from_dict(entry, place)
    except HyperParamsError as error:
        faults += [f"{place}: {fault}" for fault in error.faults]
        return None


def _named_twice(lists: Mapping[str, Sequence[Any]]) -> Iterable[str]:
    for name in ("models", "methods", "datasets"):
        for called, count in Counter(each.called for each in lists[name]).items():
            if count > 1:
                hint = "give each a label" if name != "models" else "name each once"
                yield f"{name}: {count} are called {called!r}; {hint}"
    for text, count in Counter(map(repr, lists["scenarios"])).items():
        if count > 1:
            yield f"scenarios: {text} is there {count} times; name each once"
