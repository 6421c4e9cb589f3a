"""The scenarios whose parts do not know of one another: cases alone, in chunks, and batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from attrs import frozen

from kedit_bench.cells import Cell
from kedit_bench.measure import EditClock, UpdateSizes, counted
from kedit_bench.mixing import Case
from kedit_bench.state import CellState
from kedit_bench.taken import batches_of, left_over
from kedit_core.editing import Editor
from kedit_core.evaluation import case_of
from kedit_core.patches import EditPatch
from kedit_core.requests import EditRequest

CHUNK = 25  # cases edited alone that are one part


class Ability(Protocol):
    """What runs tasks on edited models; see kedit_bench.ability."""

    def __call__(self, editor: Editor) -> dict[str, Any]:
        """The figures of a model as it is now, beside those of the model without patches."""

    def unedited(self, editor: Editor, tell: Callable[[str], None]) -> dict[str, Any]:
        """The figures of the model without patches, measured once."""


@frozen(kw_only=True, eq=False)
class Bench:
    """What running a cell takes beside the cell.

    Attributes:
        advance: called with a number of requests that are done, and whether this run did them.
        ability: runs tasks on the edited model, or None.
    """

    editor: Editor
    state: CellState
    clock: EditClock
    sizes: UpdateSizes
    advance: Callable[[int, bool], None]
    ability: Ability | None = None


def parts_of(cell: Cell) -> tuple[list[tuple[EditRequest, ...]], list[str]]:
    """The parts of a cell that is no sequence, and a sentence for what is left over."""
    if cell.scenario.kind == "single":
        cases = cell.dataset.cases
        return [_flat(cases[start : start + CHUNK]) for start in range(0, len(cases), CHUNK)], []
    size = cell.scenario.size or len(cell.requests)
    batches, rest = batches_of(cell.dataset.cases, size)
    return batches, [left_over(len(rest), size)] if rest else []


def run_parts(
    cell: Cell,
    bench: Bench,
    parts: Sequence[Sequence[EditRequest]],
    mine: Callable[[int], bool] = lambda number: True,
) -> dict[int, dict[str, Any]]:
    """The record of every part, from disk or run now; after each the model is as it was.

    Args:
        mine: which of the parts, 1 and up, are this process's.

    Raises whatever editing or measuring raised.
    """
    found = {}
    for number, requests in enumerate(parts, start=1):
        if not mine(number):
            continue
        record = kept = bench.state.part(number)
        if record is None:
            last = number == len(parts)
            record = _run(cell, bench, requests, number, with_ability=last and cell.scenario.kind == "batch")
            bench.state.finish_part(number, record)
        found[number] = record
        bench.advance(len(requests), kept is None)
    return found


def _run(
    cell: Cell, bench: Bench, requests: Sequence[EditRequest], number: int, *, with_ability: bool
) -> dict[str, Any]:
    """One part: edited, measured, and taken off."""
    started, computing = time.perf_counter(), bench.clock.seconds
    updates: list[dict[str, Any]] = []
    sizes: list[int] = []

    def note(patch: EditPatch, edited: Sequence[EditRequest]) -> None:
        updates.extend(bench.sizes.of(patch, number if cell.scenario.kind == "batch" else case_of(edited[0])))
        sizes.append(patch.size)

    try:
        result = bench.editor.edit(
            requests, scenario=cell.scenario.kind, protocols=cell.protocols, metrics=cell.metrics, on_patch=note
        )
        ability = bench.ability(bench.editor) if with_ability and bench.ability is not None else None
    finally:
        bench.editor.restore()
    computing = bench.clock.seconds - computing
    evaluation = result.evaluation
    return {
        "requests": len(requests),
        "evaluation": evaluation.to_dict() if evaluation else None,
        "updates": updates,
        "patch_bytes": sizes,
        "warnings": counted(result.warnings),
        "ability": ability,
        "seconds": {"edit": computing, "evaluate": time.perf_counter() - started - computing},
    }


def _flat(cases: Sequence[Case]) -> tuple[EditRequest, ...]:
    return tuple(request for case in cases for request in case)
