"""Measured rows of methods on FactWorld, read from benchmarks/results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from kedit_core.contract import MethodInfo
from site_parts.text import code, table

Row: TypeAlias = Mapping[str, Any]

_ORDER = ("single", "batch", "sequential")
_FIGURES = {
    "reliability": ("gen_free.reliability", None),
    "generalization": ("gen_free.generalization", None),
    "locality: neighborhood": ("gen_free.locality", "neighborhood"),
    "locality: same relation": ("gen_free.locality", "same_relation"),
    "portability": ("gen_free.portability", None),
}
_SHORT = ("reliability", "generalization", "locality: neighborhood")
_COST = ["s / fact", "KiB / fact"]


def read_rows(repo: Path, method: str = "*") -> list[Row]:
    """Every row that was measured, of all methods or one, in the order of tables."""
    files = (repo / "benchmarks" / "results").glob(f"*.{method}.*.json")
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return sorted(rows, key=lambda row: _key(row["settings"]))


def results_table(repo: Path, method: str) -> str:
    """What one method does on FactWorld, in every scenario that was run."""
    rows = read_rows(repo, method)
    if not rows:
        return "It is not in the table of results."
    body = [[_facts(row["settings"]), _model(row), *_shares(row, _FIGURES), *_costs(row)] for row in rows]
    return table(["facts", "model", *_FIGURES, *_COST], body)


def compared_table(repo: Path, methods: Iterable[MethodInfo]) -> str:
    """One row a method, in its first scenario on the Llama of FactWorld: what is to be had at what cost."""
    rows = read_rows(repo)
    body = []
    for info in methods:
        row = _first([row for row in rows if row["settings"]["method"] == info.name], _reads(info))
        link = f"[{code(info.name)}]({info.name}.md)"
        if row is None:
            body.append([link, "not in the table", *["-"] * (len(_SHORT) + len(_COST))])
        else:
            shares = _shares(row, {name: _FIGURES[name] for name in _SHORT})
            body.append([link, f"{_facts(row['settings'])} ({_model(row)})", *shares, *_costs(row)])
    return table(["method", "facts", *_SHORT, *_COST], body)


def _reads(info: MethodInfo) -> bool:
    """Whether it leaves the fact to the model to read, which only the models called readers have learnt."""
    return info.operations == {"router"} and info.training is None


def _first(rows: list[Row], reader: bool) -> Row | None:
    wanted = "factworld:llama-reader" if reader else "factworld:llama"
    return next((row for row in rows if row["settings"]["model"] == wanted), None)


def _key(settings: Mapping[str, Any]) -> tuple[int, int, str, str]:
    return _ORDER.index(settings["scenario"]), settings["size"], settings["model"], settings["method"]


def _facts(settings: Mapping[str, Any]) -> str:
    scenario, size = settings["scenario"], settings["size"]
    rounds = f", {settings['per_round']} a round" if settings["per_round"] > 1 else ""
    if scenario == "single":
        return f"each of {settings['cases']} alone"
    return f"{size} at once" if scenario == "batch" else f"{size} one after another{rounds}"


def _model(row: Row) -> str:
    name: str = row["settings"]["model"]
    return name.removeprefix("factworld:")


def _shares(row: Row, figures: Mapping[str, tuple[str, str | None]]) -> list[str]:
    return [_number(_value(row, name, part), 3) for name, part in figures.values()]


def _costs(row: Row) -> list[str]:
    size = _value(row, "efficiency.patch_size", None)
    return [_number(row.get("processor_seconds"), 2), _number(None if size is None else size / 1024, 1)]


def _value(row: Row, name: str, part: str | None) -> float | None:
    figure = row["figures"].get(name, {})
    found: float | None = figure.get("value") if part is None else figure.get("parts", {}).get(part)
    return found


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
