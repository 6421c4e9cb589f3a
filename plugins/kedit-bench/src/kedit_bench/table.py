"""A benchmark's figures as CSV: a row for each cell, metric and sub-key, and task. Imports no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kedit_core.files import replacing

COLUMNS = (
    "cell", "model", "method", "label", "dataset", "scenario", "size", "batch_size", "status",
    "metric", "part", "source", "value", "unit", "cases", "tag", "error",
)  # fmt: skip


def rows_of(cells: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row for each metric of each cell (``part`` empty), each sub-key, and each source of a mix.

    A cell that failed has one row, with its error.
    """
    for cell in cells:
        scenario = cell["scenario"]
        head = {
            "cell": cell["id"],
            **{name: cell[name] for name in ("model", "method", "label", "dataset", "status")},
            "scenario": scenario["kind"],
            "size": scenario["size"],
            "batch_size": scenario["batch_size"],
        }
        if cell["evaluation"] is None:
            yield {**head, "error": cell["error"]}
            continue
        for name, result in cell["evaluation"]["metrics"].items():
            of_metric = {**head, "metric": name, "unit": result["unit"], "tag": result["tag"]}
            yield {**of_metric, "value": result["value"], "cases": len(result["cases"])}
            for part, value in result["parts"].items():
                scores = result["case_parts"].get(part)
                yield {
                    **of_metric,
                    "part": part,
                    "value": value,
                    "cases": len(result["cases"] if scores is None else scores),
                }
            for source, metrics in cell["by_source"].items():
                if name in metrics:
                    yield {**of_metric, "source": source, "value": metrics[name]}
        yield from _ability_rows(head, cell["ability"])


def _ability_rows(head: Mapping[str, Any], ability: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Tasks on the edited model, and by how much they differ from the unedited one; nothing of a smoke test."""
    if ability is None or ability["smoke"]:
        return
    for task, found in ability["tasks"].items():
        of_task = {**head, "cases": found["documents"], "tag": ability["harness"]}
        for metric, figures in found["metrics"].items():
            name = f"ability.{task}.{metric}"
            yield {**of_task, "metric": name, "value": figures["value"]}
            yield {**of_task, "metric": name, "part": "delta", "value": figures["delta"]}


def write_csv(cells: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the rows of cells in one step. Raises OSError."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="")
    writer.writeheader()
    writer.writerows(rows_of(cells))
    with replacing(path) as stream:
        stream.write(text.getvalue().encode())
