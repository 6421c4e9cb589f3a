"""A benchmark's figures as CSV: a row for each cell, metric and sub-key, and task. Imports no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from kedit_core.files import replacing

COLUMNS = (
    "cell", "model", "method", "label", "dataset", "scenario", "size", "batch_size", "status",
    "metric", "part", "source", "value", "unit", "cases", "tag", "error",
)  # fmt: skip


def rows_of(cells: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row for each metric of each cell (``part`` empty) and each sub-key, then source by source of a mix.

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
                scores = result["case_parts"].get(part, result["cases"])
                yield {**of_metric, "part": part, "value": value, "cases": len(scores)}
            yield from _source_rows(of_metric, result, cell["by_source"])
        yield from _ability_rows(head, cell["ability"])


def _source_rows(
    of_metric: Mapping[str, Any], result: Mapping[str, Any], by_source: Mapping[str, Mapping[str, float]]
) -> Iterator[dict[str, Any]]:
    """A metric over the cases of each source of a mix, and its sub-keys over them."""
    together: Callable[[list[float]], float] = sum if "total" in result["statistics"] else fmean
    for source, metrics in by_source.items():
        of_source = {**of_metric, "source": source}
        if (value := metrics.get(of_metric["metric"])) is not None:
            yield {**of_source, "value": value, "cases": len(_own(result["cases"], source, by_source))}
        for part, scores in result["case_parts"].items():
            if own := _own(scores, source, by_source):
                yield {**of_source, "part": part, "value": together(own), "cases": len(own)}


def _own(scores: Mapping[str, float], source: str, sources: Iterable[str]) -> list[float]:
    """The scores of the cases that are of a source: those called ``source/case``."""
    # of two sources a and a/b, the longer name is the one that is meant
    longer = tuple(f"{other}/" for other in sources if other.startswith(f"{source}/"))
    return [score for case, score in scores.items() if case.startswith(f"{source}/") and not case.startswith(longer)]


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
