"""Running one cell: from disk what is there, the rest now."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from attrs import define, evolve, field

from kedit_bench.cells import Cell, folder_of, id_of, identity
from kedit_bench.distributed import Company
from kedit_bench.distributed_parts import FailedElsewhere, failure_of, gathered, unfinished
from kedit_bench.groups import Ability, Bench, parts_of, run_parts
from kedit_bench.live import Loaded, editor_of, given_to
from kedit_bench.measure import EditClock, UpdateSizes
from kedit_bench.pace import Pace
from kedit_bench.results import failed, finished, head_of
from kedit_bench.sequence import Carried, run_sequence, segments_of
from kedit_bench.state import CellState
from kedit_core.editing import Editor
from kedit_core.editing.progress import Step
from kedit_core.errors import KeditError
from kedit_core.requests import EditRequest

SHARED, OWN = "shared", "own"
"""What the leader says of a cell: that all processes take their share of it, or that it has nothing for them to do."""


@define(kw_only=True)
class CellRun:
    """One cell while it runs.

    Attributes:
        root: the benchmark's folder.
        say: takes sentences for people.
        told: called whenever some of the cell is done.
        number: which of the benchmark's cells it is.
        company: the processes that share it.
        state, known: what is known of the cell, also when it fails.
        was_there: its result was on disk, and nothing was run.
    """

    cell: Cell
    loaded: Loaded
    root: Path
    ability: Ability | None
    say: Callable[[str], None]
    pace: Pace
    step: Step
    told: Callable[[], None]
    number: int = 1
    company: Company = field(factory=Company)
    state: CellState | None = None
    known: dict[str, Any] = field(factory=dict)
    was_there: bool = False

    def result(self, load: float) -> dict[str, Any]:
        """From disk when it is there, else run, or what is left of it."""
        started = time.perf_counter()
        clock, carried = EditClock(), Carried()
        editor, state = self._editor([clock, carried])
        if (kept := state.read("result")) is not None:
            self.was_there = True
            self.step.advance(len(self.cell.edited))
            # labels may have changed: two that make the same folder name share what follows from the same settings
            return {**kept, **head_of(self.cell, state.cell_id)}
        in_sequence = self.cell.scenario.kind == "sequential"
        parts, notes = ([], []) if in_sequence else parts_of(self.cell)
        total = len(segments_of(self.cell)) if in_sequence else len(parts)
        there = sum(state.part(number) is not None for number in range(1, total + 1))
        if there:
            self.say(f"resuming: {there} of {total} parts are there")
        before_base = time.perf_counter()
        if there < total:
            self._read_base(editor)
        seconds = {"load": load + before_base - started, "base": time.perf_counter() - before_base}
        self.pace.begin()
        bench = self._bench(editor, state, clock)
        if in_sequence:
            records = run_sequence(self.cell, bench, carried)
        elif there < total and self.company.count > 1:
            records = self._shared(bench, parts)
        else:
            records = list(run_parts(self.cell, bench, parts).values())
        self.loaded.check()
        made = finished(self.cell, state.cell_id, records, known=self.known, seconds=seconds, notes=notes)
        state.finish(made)
        return made

    def help(self) -> None:
        """This process's share of a cell that the leader has begun. Raises whatever editing or measuring raised."""
        clock = EditClock()
        editor, state = self._editor([clock, Carried()])
        parts, _ = parts_of(self.cell)
        if unfinished(state, self.company, len(parts)) <= len(parts):
            self._read_base(editor)
        bench = self._bench(editor, state, clock)
        run_parts(self.cell, bench, parts, partial(self.company.mine, total=len(parts)))
        self.loaded.check()

    def failed(self, error: Exception) -> dict[str, Any]:
        """The result of a cell that an error ended; where the error came from is written beside."""
        if self.state is not None and not isinstance(error, FailedElsewhere):
            with suppress(OSError):
                self.state.folder.mkdir(parents=True, exist_ok=True)
                (self.state.folder / "error.txt").write_text("".join(traceback.format_exception(error)))
        return failed(self.cell, self.state.cell_id if self.state else None, sentence(error), self.known)

    def _shared(self, bench: Bench, parts: Sequence[Sequence[EditRequest]]) -> list[dict[str, Any]]:
        """Every part's record, each from the process whose share it is; of several failures the first part's counts."""
        total = len(parts)
        self.company.say(f"cell {self.number}", SHARED)
        faults: list[tuple[int, Exception]] = []
        try:
            run_parts(self.cell, bench, parts, partial(self.company.mine, total=total))
        except Exception as error:
            faults.append((unfinished(bench.state, self.company, total), error))
        faults += failure_of(self.number, self.company)
        if faults:
            raise min(faults, key=lambda fault: fault[0])[1]
        return gathered(bench, parts, self.company)

    def _read_base(self, editor: Editor) -> None:
        """Before any edit, so that nothing of it is on the model, and what cannot be measured at all is known."""
        editor.read_base(self.cell.requests, protocols=self.cell.protocols, metrics=self.cell.metrics)
        if self.ability is not None and self.cell.ability is not None and self.company.first:
            self.ability.unedited(editor, self.say)

    def _bench(self, editor: Editor, state: CellState, clock: EditClock) -> Bench:
        return Bench(
            editor=editor,
            state=state,
            clock=clock,
            sizes=UpdateSizes(editor.stack),
            advance=self._advance,
            ability=self.ability,
        )

    def _editor(self, plugins: list[object]) -> tuple[Editor, CellState]:
        """The cell's Editor with all its settings decided, and the state that belongs to it."""
        first = self.loaded.editor
        options, given = given_to(self.cell, first.host, self.root / "fits")
        make = partial(editor_of, loaded=self.loaded, options=options, plugins=plugins)
        editor = make(self.cell)
        settings = identity(self.cell, editor, self.loaded.digest, given)
        cell_id = id_of(settings)
        self.state = state = CellState(folder_of(self.root, self.cell, cell_id), cell_id)
        kept = state.read("settings")
        if kept is None and not self.company.first:
            raise KeditError(f"{state.folder} is not the leader's folder; all processes need one folder in common")
        if editor.settings is not None and editor.settings.undecided:
            if kept is not None:
                # what a look at the model decided holds for all parts, whichever process looked
                method = evolve(self.cell.method, hparams=kept["hparams"], overrides={}, preset=None)
                editor = make(evolve(self.cell, method=method))
            else:
                scenario = self.cell.scenario
                editor.plan(self.cell.requests, scenario=scenario.kind, batch_size=scenario.batch_size)
        if kept is None:
            state.write("settings", kept := {"identity": settings, **_settings_of(editor)})
        self.known.update({name: kept[name] for name in ("hparams", "hparams_source")})
        return editor, state

    def _advance(self, requests: int, fresh: bool) -> None:
        self.pace.advance(self.cell, requests, fresh=fresh)
        self.step.advance(requests)
        self.told()


def sentence(error: Exception) -> str:
    """What went wrong, on one line; an error that is not ours with its class."""
    lines = str(error).strip().splitlines() or [""]
    text = " ".join(line.strip() for line in lines)
    return text if isinstance(error, KeditError) else f"{type(error).__name__}: {lines[0]}".removesuffix(": ")


def _settings_of(editor: Editor) -> Mapping[str, Any]:
    settings = editor.settings
    if settings is None:
        return {"hparams": {}, "hparams_source": ""}
    return {"hparams": settings.hparams.to_dict(), "hparams_source": "; ".join(settings.brief) or "defaults"}
