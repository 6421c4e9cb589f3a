"""A sequence of edits, in segments that end at checkpoints: a killed one goes on behind its last finished segment.

After each segment its rounds are one patch, which is kept on disk; a segment begins with the patches of those before on
the model, whether they were computed by this process or read. So results do not depend on interruptions.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from attrs import define

from kedit_bench.cells import Cell
from kedit_bench.groups import Bench
from kedit_bench.measure import counted, immediate_reading, tagged
from kedit_core.contract import hookimpl
from kedit_core.editing import EditContext
from kedit_core.evaluation import Evaluation
from kedit_core.patches import EditPatch
from kedit_core.requests import EditRequest

LONGEST = 100  # edits of a segment, so that a long way between two checkpoints is not lost whole


@define
class Carried:
    """A plugin that tells a method which patch it goes on from: the one of the segment before, whoever computed it.

    An Editor knows the patches it computed itself; this one may have been read from disk.
    """

    patch: EditPatch | None = None

    @hookimpl
    def prepare_requests(self, context: EditContext) -> None:
        """Set ``context.previous`` before the first round of an edit."""
        if self.patch is not None and any(entry.patch.id == self.patch.id for entry in context.stack.patches):
            context.previous = self.patch


def segments_of(cell: Cell) -> list[tuple[int, int]]:
    """(first, end) of each segment, in edits: segments end at checkpoints, and at ends of rounds in between."""
    size, together = cell.scenario.size or len(cell.requests), cell.scenario.batch_size
    step = max(1, LONGEST // together) * together
    stops = sorted({0, *range(step, size, step), *cell.scenario.checkpoints, size})
    return list(pairwise(stops))


def run_sequence(cell: Cell, bench: Bench, carried: Carried) -> list[dict[str, Any]]:
    """Every segment's record, from disk or run now; the model is afterwards as it was.

    Args:
        carried: plugged into the Editor.

    Raises whatever editing or measuring raised.
    """
    segments = segments_of(cell)
    found, patches = _kept(cell, bench, len(segments))
    try:
        for record, patch in zip(found, patches, strict=True):
            if patch is not None:
                bench.editor.apply(patch, way=record["patch"]["way"])
                carried.patch = patch
            bench.advance(record["requests"], False)
        for number, (first, end) in enumerate(segments[len(found) :], start=len(found) + 1):
            found.append(_run(cell, bench, carried, number, first, end))
            bench.advance(end - first, True)
    finally:
        carried.patch = None
        bench.editor.restore()
    return found


def _kept(cell: Cell, bench: Bench, most: int) -> tuple[list[dict[str, Any]], list[EditPatch | None]]:
    """The finished segments, and of each the patch that is to be on the model (an extending method has only its last).

    A segment whose patch is gone is not finished, nor are those behind it, unless all are finished.
    """
    records: list[dict[str, Any]] = []
    while len(records) < most and (record := bench.state.part(len(records) + 1)) is not None:
        records.append(record)
    if len(records) == most:
        return records, [None] * most  # nothing is left to do
    patches: list[EditPatch | None]
    if cell.info.state == "extend":
        while records:
            last = bench.state.patch(len(records), records[-1]["patch"]["id"])
            if last is not None:
                return records, [*[None] * (len(records) - 1), last]
            records.pop()
        return [], []
    patches = [bench.state.patch(number, record["patch"]["id"]) for number, record in enumerate(records, start=1)]
    whole = patches.index(None) if None in patches else len(patches)
    return records[:whole], patches[:whole]


def _run(cell: Cell, bench: Bench, carried: Carried, number: int, first: int, end: int) -> dict[str, Any]:
    started, computing = time.perf_counter(), bench.clock.seconds
    editor, together = bench.editor, cell.scenario.batch_size
    immediate: list[dict[str, dict[str, float]]] = []
    updates: list[dict[str, Any]] = []
    sizes: list[int] = []

    def note(patch: EditPatch, edited: Sequence[EditRequest]) -> None:
        updates.extend(bench.sizes.of(patch, first // together + len(sizes) + 1))
        sizes.append(patch.size)
        immediate.append(immediate_reading(editor, edited, cell.protocols))

    # no protocol: the evaluation holds what the edits cost and nothing else
    result = editor.edit(
        cell.requests[first:end], scenario="sequential", batch_size=together, protocols=(), on_patch=note
    )
    carried.patch = result.patch
    bench.state.save_patch(number, result.patch)
    checkpoint, ability = None, None
    last = end == cell.scenario.size
    if end in cell.scenario.checkpoints:
        checkpoint = _measured(cell, bench, end, last=last)
    asked = cell.ability
    if bench.ability is not None and asked is not None and (last or (checkpoint and asked.checkpoints)):
        ability = bench.ability(editor)
    computing = bench.clock.seconds - computing
    record = {
        "requests": end - first,
        "edits": end,
        "evaluation": checkpoint.to_dict(outputs=last) if checkpoint else None,
        "costs": result.evaluation.to_dict() if result.evaluation else None,
        "immediate": immediate,
        "updates": updates,
        "patch_bytes": sizes,
        "patch": {"id": result.patch.id, "way": result.way},
        "warnings": counted(result.warnings),
        "ability": ability,
        "seconds": {"edit": computing, "evaluate": time.perf_counter() - started - computing},
    }
    bench.state.finish_part(number, record)
    return record


def _measured(cell: Cell, bench: Bench, end: int, *, last: bool) -> Evaluation:
    """All edits so far, locality against the untouched base; groups on request only at the end."""
    metrics = cell.metrics if last else ()
    evaluation = bench.editor.evaluate(cell.requests[:end], protocols=cell.protocols, metrics=metrics)
    return tagged(evaluation, "sequential")
