"""What a bench file says, checked and typed, for the report and for comparisons.

The file is ``bench.json`` of a bench (format 1): what ran (``spec``, ``manifest``) and one entry a cell.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from kedit_core.contract import MetricResult
from kedit_core.errors import InputError
from kedit_core.evaluation import Evaluation

FORMAT, KIND, FILE = 1, "kedit-bench", "bench.json"


@frozen(kw_only=True)
class Scenario:
    """How edits were put on: ``single``, ``batch`` or ``sequential``; sizes count edited cases."""

    kind: str
    size: int | None = None
    batch_size: int | None = None
    checkpoints: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """``single``, ``batch of 30``, ``sequence of 100, 10 a round``."""
        if self.kind == "batch":
            return f"batch of {self.size}" if self.size else "batch"
        if self.kind == "sequential":
            whole = f"sequence of {self.size}" if self.size else "sequence"
            return f"{whole}, {self.batch_size} a round" if self.batch_size else whole
        return self.kind

    @property
    def key(self) -> str:
        """The same for cells that may stand side by side: cases edited alone do not depend on how many there are, and
        how many facts a round takes is a matter of the method."""
        if self.kind == "sequential":
            return f"sequence of {self.size}" if self.size else "sequence"
        return self.kind if self.kind == "single" else self.text


@frozen(kw_only=True)
class Cell:
    """One method on one model, dataset and scenario.

    Attributes:
        label: what it is called in tables (the method's name, or the spec's own label for these settings), with a
            number where another cell at its place has the same; ``own_label`` is without.
        error: why it failed, None where it did not.
        evaluation: metric name -> result; of the last checkpoint in a sequence. Empty for a failed cell.
        checkpoints: (edits so far, metric name -> result), in order.
        immediate: metric name -> value right after each round, averaged.
        ages: buckets ``{"from", "to", "edits", "metrics"}`` by rounds since a fact was written.
        by_source: source of a mixed dataset -> metric name -> value.
        updates: one entry for each patch and place: ``{"case", "place", "norm", "relative", "rank"}``.
    """

    id: str
    model: str
    method: str
    label: str
    dataset: str
    scenario: Scenario
    error: str | None
    evaluation: Mapping[str, MetricResult]
    checkpoints: tuple[tuple[int, Mapping[str, MetricResult]], ...]
    immediate: Mapping[str, float]
    ages: Sequence[Mapping[str, Any]]
    by_source: Mapping[str, Mapping[str, float]]
    updates: Sequence[Mapping[str, Any]]
    hparams: Mapping[str, Any]
    hparams_source: str
    seconds: Mapping[str, float]
    warnings: Sequence[Mapping[str, Any]]
    ability: Mapping[str, Any] | None
    own_label: str

    @property
    def place(self) -> tuple[str, str, str]:
        """Model, dataset and scenario: what cells must share before their numbers may be put side by side."""
        return self.model, self.dataset, self.scenario.key


@frozen(kw_only=True)
class Bench:
    """A whole bench: its cells in the order of the file, and what made them.

    Attributes:
        metrics: what the file says of its metrics beside their results: name -> ``{"summary", "better"}``, where
            ``better`` is ``"higher"``, ``"lower"`` or None.
    """

    cells: tuple[Cell, ...]
    spec: Mapping[str, Any]
    manifest: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]


def load_bench(path: str | Path) -> Mapping[str, Any]:
    """The content of a bench: of its folder, or of its ``bench.json``.

    Raises InputError when there is none, or when it is not JSON.
    """
    found = Path(path)
    file = found / FILE if found.is_dir() else found
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise InputError(
            f"there is no bench to read at {file} ({exc.strerror or exc}); give a folder that kedit bench wrote"
        ) from exc
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{file} is not JSON ({exc}); give a folder that kedit bench wrote") from exc
    if not isinstance(data, dict):
        raise InputError(f"{file} holds no bench; give a folder that kedit bench wrote")
    return data


def read_bench(data: Mapping[str, Any]) -> Bench:
    """A bench from its JSON content.

    Raises InputError saying what is not as format 1 has it, and in which cell.
    """
    if not isinstance(data, Mapping) or data.get("kind") != KIND or data.get("format") != FORMAT:
        raise InputError(f"this is not a bench of format {FORMAT}; give the bench.json that kedit bench wrote")
    cells = data.get("cells")
    if not isinstance(cells, Sequence) or isinstance(cells, str):
        raise InputError('the bench has no list "cells"; give the bench.json that kedit bench wrote')
    for name in ("spec", "manifest", "metrics"):
        if not isinstance(data.get(name) or {}, Mapping):
            raise InputError(f"{name!r} of the bench is no mapping; give the bench.json that kedit bench wrote")
    if not all(isinstance(said, Mapping) for said in (data.get("metrics") or {}).values()):
        raise InputError('a value in "metrics" of the bench is no mapping; give the bench.json that kedit bench wrote')
    return Bench(
        cells=_told_apart([_cell(cell, number) for number, cell in enumerate(cells, 1)]),
        spec=data.get("spec") or {},
        manifest=data.get("manifest") or {},
        metrics=data.get("metrics") or {},
    )


def _told_apart(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells, with a number behind labels that come again at the same place."""
    seen: Counter[tuple[str, str, str, str]] = Counter()
    found = []
    for cell in cells:
        key = (*cell.place, cell.label)
        seen[key] += 1
        found.append(cell if seen[key] == 1 else evolve(cell, label=f"{cell.label} #{seen[key]}"))
    return tuple(found)


def _cell(data: Any, number: int) -> Cell:
    try:
        failed = data.get("status") == "failed" or data.get("error") is not None
        return Cell(
            id=str(data["id"]),
            model=str(data["model"]),
            method=str(data["method"]),
            label=str(data.get("label") or data["method"]),
            dataset=str(data["dataset"]),
            scenario=_scenario(data["scenario"]),
            error=str(data.get("error") or "no reason was recorded") if failed else None,
            evaluation=_evaluation(data.get("evaluation")),
            checkpoints=tuple(
                (int(each["edits"]), _evaluation(each["evaluation"])) for each in data.get("checkpoints") or ()
            ),
            immediate={
                name: float(found["value"])
                for name, found in (data.get("immediate") or {}).items()
                if found.get("value") is not None
            },
            ages=[{**each, "metrics": dict(each["metrics"])} for each in data.get("ages") or ()],
            by_source={source: dict(found) for source, found in (data.get("by_source") or {}).items()},
            updates=[dict(update) for update in data.get("updates") or ()],
            hparams=dict(data.get("hparams") or {}),
            hparams_source=_words(data.get("hparams_source")),
            seconds={part: float(value) for part, value in (data.get("seconds") or {}).items() if value is not None},
            warnings=[dict(warning) for warning in data.get("warnings") or ()],
            ability=_ability(data.get("ability")),
            own_label=str(data.get("label") or data["method"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        what = f"{exc} is missing" if isinstance(exc, KeyError) else str(exc)
        raise InputError(f"cell {number} of the bench cannot be read: {what}; run kedit bench again") from exc
    except InputError as exc:
        raise InputError(f"cell {number} of the bench cannot be read: {exc}") from exc


def _scenario(data: Mapping[str, Any]) -> Scenario:
    return Scenario(
        kind=str(data["kind"]),
        size=data.get("size"),
        batch_size=data.get("batch_size"),
        checkpoints=tuple(data.get("checkpoints") or ()),
    )


def _evaluation(data: Any) -> Mapping[str, MetricResult]:
    found = {} if data is None else Evaluation.from_dict(data).metrics
    for name, result in found.items():
        if not all(
            isinstance(output, Mapping) and isinstance(output.get("case", ""), str) for output in result.outputs
        ):
            raise ValueError(f"a reading of {name} is no mapping, or has no case")
    return found


def _ability(data: Any) -> Mapping[str, Any] | None:
    if data is not None and not (isinstance(data, Mapping) and isinstance(data.get("tasks"), Mapping)):
        raise ValueError("ability is no mapping with tasks")
    return data


def _words(value: Any) -> str:
    """Where settings came from, in whatever shape it was written."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {source}" for key, source in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(str(each) for each in value)
    return str(value or "")
