"""Running a benchmark: cell after cell, each from where it was; one that fails stops no other."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from attrs import define, field

from kedit_bench.cell_run import CellRun, sentence
from kedit_bench.cells import Cell, plan_cells
from kedit_bench.groups import Ability
from kedit_bench.live import Loaded
from kedit_bench.pace import Pace
from kedit_bench.results import failed, whole
from kedit_bench.spec import BenchSpec, ModelSpec
from kedit_bench.state import only_one, write_json
from kedit_bench.table import write_csv
from kedit_core.cli.plan import human_time
from kedit_core.editing.progress import Progress, Step, silent
from kedit_core.errors import InputError
from kedit_core.evaluation import run_manifest
from kedit_core.evaluation.manifest import versions
from kedit_core.plugins import Catalogue, Host

RESULT = "bench.json"
CSV = "bench.csv"
REPORT = "report.html"


def run_bench(
    spec: BenchSpec,
    root: Path,
    *,
    catalogue: Catalogue | None = None,
    cache: Path | None = None,
    progress: Progress = silent,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Run a benchmark, or what is left of it, and write ``bench.json``, ``bench.csv`` and ``report.html`` to ``root``.

    What is finished is on disk after every part, so that the same call goes on where a killed one was. A cell that
    fails is told, recorded and, in the next run, tried again.

    Args:
        cache: where kedit keeps statistics and base answers; the user's by default.
        tell: takes sentences for people.

    Raises:
        InputError: something is wrong with what was asked, or another process runs in ``root``; nothing was started.
    """
    installed = catalogue or Catalogue.installed()
    ability = _ability(spec)
    cells, notes = plan_cells(spec, installed, Host(installed))
    if not cells:
        raise InputError(f"there is nothing to run: {'; '.join(notes)}")
    started = datetime.now(UTC)
    with only_one(root):
        for note in notes:
            tell(f"note: {note}")
        run = _Run(root=root, catalogue=installed, cache=cache, tell=tell, ability=ability, cells=cells)
        with progress("benchmark", sum(len(cell.requests) for cell in cells)) as step:
            results = run.all(step)
        manifest = {
            "versions": versions(),
            "platform": f"{platform.system()} {platform.machine()}",
            "threads": torch.get_num_threads(),
            "devices": sorted(run.devices),
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": sum(result["seconds"]["total"] for result in results),
            "notes": notes,
        }
        bench = whole(spec, manifest, results)
        write_json(root / RESULT, bench)
        write_csv(results, root / CSV)
        _write_report(bench, root / REPORT, tell)
    return bench


@define(kw_only=True)
class _Run:
    """A benchmark while it runs; it holds one model at a time."""

    root: Path
    catalogue: Catalogue
    cache: Path | None
    tell: Callable[[str], None]
    ability: Ability | None
    cells: list[Cell]
    devices: set[str] = field(factory=set)
    loaded: Loaded | None = None
    pace: Pace = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.pace = Pace(self.cells)

    def all(self, step: Step) -> list[dict[str, Any]]:
        """The results of all cells, in order."""
        results = []
        for number, cell in enumerate(self.cells, start=1):
            place = f"[{number}/{len(self.cells)}] {cell}"
            step.describe(self._with_time(place))
            results.append(result := self.cell(cell, place, step))
            self.pace.finish(cell)
            end = "done" if result["status"] == "done" else f"FAILED: {result['error']}"
            self.tell(f"note: {self._with_time(f'{place}: {end}')}")
        self.release()
        return results

    def cell(self, cell: Cell, place: str, step: Step) -> dict[str, Any]:
        """The result of one cell; whatever goes wrong is part of it."""
        before = time.perf_counter()
        try:
            loaded = self.model(cell.model)
        except Exception as error:
            return failed(cell, None, sentence(error))
        live = CellRun(
            cell=cell,
            loaded=loaded,
            root=self.root,
            ability=self.ability,
            say=lambda text: self.tell(f"note: {place}: {text}"),
            pace=self.pace,
            step=step,
            told=lambda: step.describe(self._with_time(place)),
        )
        try:
            return live.result(load=time.perf_counter() - before)
        except Exception as error:
            # after an error nobody knows what is left on the model, or in the memory of its device
            self.release()
            return live.failed(error)

    def model(self, spec: ModelSpec) -> Loaded:
        """The model, loaded unless it is the one at hand."""
        if self.loaded is None or self.loaded.spec != spec:
            self.release()
            self.loaded = Loaded.load(spec, self.catalogue, self.cache)
            self.devices.update(run_manifest(self.loaded.editor.model)["devices"])
        return self.loaded

    def release(self) -> None:
        """Let go of the model at hand."""
        if self.loaded is None:
            return
        self.loaded = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _with_time(self, text: str) -> str:
        left = self.pace.left()
        return f"{text}; about {human_time(left)} left" if left else text


def _ability(spec: BenchSpec) -> Ability | None:
    """What runs the harness, or None when nobody asked. Raises InputError when it is not there."""
    if spec.ability is None:
        return None
    try:
        module = import_module("kedit_bench.ability")
    except ModuleNotFoundError as error:
        raise InputError(f"ability needs {error.name}, which is not installed; leave ability out") from error
    return partial(module.measure, spec=spec.ability)


def _write_report(bench: Mapping[str, Any], path: Path, tell: Callable[[str], None]) -> None:
    try:
        from kedit_bench.report import write_report
    except ImportError as error:
        tell(f"note: no report was written ({error})")
        return
    write_report(bench, path)
