"""Running a benchmark: cell after cell, each from where it was; one that fails stops no other."""

from __future__ import annotations

import gc
import json
import platform
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from attrs import define, field

from kedit_bench.cell_run import OWN, SHARED, CellRun, sentence
from kedit_bench.cells import Cell, plan_cells, with_all_methods
from kedit_bench.distributed import Company, LostError, company
from kedit_bench.distributed_parts import answer, plan_digest, same_plan, unfinished
from kedit_bench.groups import Ability, parts_of
from kedit_bench.live import Loaded
from kedit_bench.pace import Pace
from kedit_bench.results import failed, times_kept, whole
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
_PLAN, _WRITTEN = "plan", "written"  # what the leader of several processes tells the others


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
    fails is told, recorded and, in the next run, tried again. Processes of a launcher share the parts of cells that are
    no sequences; only the first of them speaks, and all return the result.

    Args:
        cache: where kedit keeps statistics and base answers; the user's by default.
        tell: takes sentences for people.

    Raises:
        InputError: something is wrong with what was asked, or another process runs in ``root``; nothing was started.
        LostError, LeaderEnded: of several processes another one is gone.
    """
    installed = catalogue or Catalogue.installed()
    spec = with_all_methods(spec, installed)
    with company() as together:
        if not together.first:
            cells, _ = plan_cells(spec, installed, Host(installed))
            _Run(root=root, catalogue=installed, cache=cache, cells=cells, company=together).follow()
            found: dict[str, Any] = json.loads((root / RESULT).read_text())
            return found
        with together.leading():
            found = _lead(spec, root, together, installed, cache, progress, tell)
            together.say(_WRITTEN, "")
            return found


def _lead(
    spec: BenchSpec,
    root: Path,
    together: Company,
    installed: Catalogue,
    cache: Path | None,
    progress: Progress,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    ability = _ability(spec, root)
    host = Host(installed)
    cells, notes = plan_cells(spec, installed, host)
    started = datetime.now(UTC)
    with only_one(root):
        for note in notes:
            tell(f"note: {note}")
        together.say(_PLAN, plan_digest(cells))
        run = _Run(
            root=root, catalogue=installed, cache=cache, tell=tell, ability=ability, cells=cells, company=together
        )
        with progress("benchmark", sum(len(cell.edited) for cell in cells)) as step:
            results = run.all(step)
        manifest = {
            "versions": versions(),
            "platform": f"{platform.system()} {platform.machine()}",
            "threads": torch.get_num_threads(),
            "processes": together.count,
            "devices": sorted(run.devices),
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": sum(result["seconds"]["total"] for result in results),
            "notes": notes,
        }
        if not run.ran:
            manifest |= times_kept(root / RESULT, results)
            tell("note: everything was there; nothing was run")
        bench = whole(spec, manifest, results, host.metrics())
        write_json(root / RESULT, bench)
        write_csv(results, root / CSV)
        _write_report(bench, root / REPORT, tell)
    return bench


@define(kw_only=True)
class _Run:
    """A benchmark while it runs; it holds one model at a time.

    Attributes:
        ran: whether there was a cell whose result was not on disk.
    """

    root: Path
    catalogue: Catalogue
    cache: Path | None
    cells: list[Cell]
    company: Company
    tell: Callable[[str], None] = lambda text: None
    ability: Ability | None = None
    devices: set[str] = field(factory=set)
    loaded: Loaded | None = None
    ran: bool = False
    pace: Pace = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.pace = Pace(self.cells)

    def all(self, step: Step) -> list[dict[str, Any]]:
        """The results of all cells, in order."""
        results = []
        for number, cell in enumerate(self.cells, start=1):
            place = f"[{number}/{len(self.cells)}] {cell}"
            step.describe(self._with_time(place))
            results.append(result := self.cell(cell, number, place, step))
            self.company.say(f"cell {number}", OWN)  # unless it was shared
            self.pace.finish(cell)
            end = "done" if result["status"] == "done" else f"FAILED: {result['error']}"
            self.tell(f"note: {self._with_time(f'{place}: {end}')}")
        self.release()
        return results

    def follow(self) -> None:
        """Take this process's share of every cell that the leader shares."""
        same_plan(self.cells, self.company.hear(_PLAN, 0))
        with silent("", None) as step:
            for number, cell in enumerate(self.cells, start=1):
                if self.company.hear(f"cell {number}", 0) == SHARED:
                    answer(number, self.company, *self.share(cell, number, step))
        self.release()
        self.company.hear(_WRITTEN, 0)

    def share(self, cell: Cell, number: int, step: Step) -> tuple[int, str] | tuple[()]:
        """Run this process's parts of a cell; if one fails, its number and the error in a sentence."""
        live = None
        try:
            live = self.live(cell, number, self.model(cell.model), step, str(cell))
            live.help()
        except Exception as error:
            self.release()
            if live is None or live.state is None:
                return 0, sentence(error)
            live.failed(error)
            return unfinished(live.state, self.company, len(parts_of(cell)[0])), sentence(error)
        return ()

    def live(self, cell: Cell, number: int, loaded: Loaded, step: Step, place: str) -> CellRun:
        """A cell, ready to be run."""
        return CellRun(
            cell=cell,
            loaded=loaded,
            root=self.root,
            ability=self.ability,
            say=lambda text: self.tell(f"note: {place}: {text}"),
            pace=self.pace,
            step=step,
            told=lambda: step.describe(self._with_time(place)),
            number=number,
            company=self.company,
        )

    def cell(self, cell: Cell, number: int, place: str, step: Step) -> dict[str, Any]:
        """The result of one cell; whatever goes wrong is part of it."""
        before = time.perf_counter()
        try:
            loaded = self.model(cell.model)
        except Exception as error:
            self.ran = True
            return failed(cell, None, sentence(error))
        live = self.live(cell, number, loaded, step, place)
        try:
            result = live.result(load=time.perf_counter() - before)
            self.ran |= not live.was_there
            return result
        except LostError:
            raise  # no other cell could be shared, either
        except Exception as error:
            self.ran = True
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


def _ability(spec: BenchSpec, root: Path) -> Ability | None:
    """What runs the harness, or None when nobody asked. Raises InputError when it is not there."""
    if spec.ability is None:
        return None
    try:
        module = import_module("kedit_bench.ability")
    except ModuleNotFoundError as error:
        raise InputError(f"ability needs {error.name}, which is not installed; leave ability out") from error
    found: Ability = module.Ability(spec.ability, root)
    return found


def _write_report(bench: Mapping[str, Any], path: Path, tell: Callable[[str], None]) -> None:
    try:
        from kedit_bench.report import write_report
    except ImportError as error:
        tell(f"note: no report was written ({error})")
        return
    write_report(bench, path)
