"""From the records of a cell's parts to its result, and from results to the benchmark's (format 1; docs/bench.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve

from kedit_bench.cells import Cell
from kedit_bench.measure import apart, by_age, by_source, merged_warnings, retention, tagged
from kedit_bench.spec import BenchSpec
from kedit_core.contract import MetricInfo
from kedit_core.editing.scenarios import cases
from kedit_core.evaluation import Evaluation, case_of, combine

FORMAT = 1
KIND = "kedit-bench"


def head_of(cell: Cell, cell_id: str | None) -> dict[str, Any]:
    """What a cell's result says of the cell itself."""
    scenario = cell.scenario
    return {
        "id": cell_id,
        "model": cell.model.called,
        "method": cell.method.name,
        "label": cell.method.called,
        "dataset": cell.dataset.label,
        "scenario": {
            "kind": scenario.kind,
            "size": scenario.size,
            "batch_size": scenario.batch_size,
            "checkpoints": list(scenario.checkpoints),
        },
    }


def failed(cell: Cell, cell_id: str | None, error: str, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The result of a cell that could not be finished; ``known``: its settings, as far as they are."""
    return {**_blank(cell, cell_id, known or {}), "status": "failed", "error": error}


def finished(
    cell: Cell,
    cell_id: str,
    records: Sequence[Mapping[str, Any]],
    *,
    known: Mapping[str, Any],
    seconds: Mapping[str, float],
    notes: Sequence[str],
) -> dict[str, Any]:
    """The result of a cell from the records of all its parts.

    Args:
        known: ``hparams`` and ``hparams_source``.
        seconds: what loading and reading the base took.
        notes: sentences that go to the warnings.
    """
    result = _blank(cell, cell_id, known)
    if cell.scenario.kind == "sequential":
        evaluation, more = _of_sequence(cell, records)
        result |= more
    else:
        evaluation = combine([Evaluation.from_dict(record["evaluation"]) for record in records])
        evaluation = tagged(evaluation, cell.scenario.kind, _together(cell))
    sources = cell.dataset.source_of
    result["by_source"] = by_source(evaluation, sources)
    result["evaluation"] = apart(evaluation, sources).to_dict()
    result["updates"] = [each for record in records for each in record["updates"]]
    result["patch_bytes"] = [size for record in records for size in record["patch_bytes"]]
    extra = [{"code": "left_over", "message": note, "count": 1} for note in notes]
    result["warnings"] = merged_warnings([*(record["warnings"] for record in records), extra])
    result["ability"] = records[-1]["ability"]
    spent = {name: sum(record["seconds"][name] for record in records) for name in ("edit", "evaluate")}
    result["seconds"] = {**seconds, **spent, "total": sum(seconds.values()) + sum(spent.values())}
    return {**result, "status": "done", "error": None}


def whole(
    spec: BenchSpec,
    manifest: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    declared: Iterable[MetricInfo],
) -> dict[str, Any]:
    """The benchmark's result: what ``bench.json`` holds, with what is ``declared`` of the metrics in it."""
    found = {name for result in results if result["evaluation"] for name in result["evaluation"]["metrics"]}
    return {
        "format": FORMAT,
        "kind": KIND,
        "spec": spec.to_dict(),
        "manifest": dict(manifest),
        "metrics": {
            info.name: {"summary": info.summary, "better": info.better} for info in declared if info.name in found
        },
        "cells": list(results),
    }


def times_kept(path: Path, results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """When results were made that are all in the benchmark's file already; empty where that is of other cells."""
    try:
        kept = json.loads(path.read_bytes())
        same = [cell["id"] for cell in kept["cells"]] == [result["id"] for result in results]
        return {name: str(kept["manifest"][name]) for name in ("started", "finished")} if same else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _together(cell: Cell) -> int | None:
    """Facts that were on the model together; of cases alone a tag counts all, as the Editor's does."""
    return cell.scenario.size if cell.scenario.kind == "batch" else None


def _of_sequence(cell: Cell, records: Sequence[Mapping[str, Any]]) -> tuple[Evaluation, dict[str, Any]]:
    sources = cell.dataset.source_of
    ends = [record for record in records if record["evaluation"]]
    measured = [Evaluation.from_dict(record["evaluation"]) for record in ends]
    costs = combine([Evaluation.from_dict(record["costs"]) for record in records if record["costs"]], manifest={})
    last = measured[-1]
    evaluation = evolve(last, metrics={**last.metrics, **costs.metrics})
    return evaluation, {
        "checkpoints": [
            {
                "edits": record["edits"],
                "evaluation": apart(each, sources).to_dict(outputs=False),
                **({"ability": record["ability"]} if record["ability"] is not None else {}),
            }
            for record, each in zip(ends, measured, strict=True)
        ],
        "immediate": retention(reading for record in records for reading in record["immediate"]),
        "ages": by_age(last, _ages(cell)),
    }


def _ages(cell: Cell) -> dict[str, int]:
    """case -> rounds since it was last written; the last round's cases are 1 old."""
    together = cell.scenario.batch_size
    rounds = -(-len(cell.requests) // together)
    return {case_of(request): rounds - index // together for index, request in enumerate(cell.requests)}


def _blank(cell: Cell, cell_id: str | None, known: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **head_of(cell, cell_id),
        "hparams": known.get("hparams", {}),
        "hparams_source": known.get("hparams_source", ""),
        "status": "failed",
        "error": None,
        "evaluation": None,
        "checkpoints": [],
        "immediate": None,
        "ages": [],
        "by_source": {},
        "updates": [],
        "patch_bytes": [],
        "seconds": {"load": 0.0, "base": 0.0, "edit": 0.0, "evaluate": 0.0, "total": 0.0},
        "warnings": [],
        "ability": None,
        "cases": len(cases(cell.edited)),
    }
