"""The command ``kedit bench``. Imports no torch until it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kedit_bench.reader import read_spec, spec_from
from kedit_bench.spec import BenchSpec
from kedit_core.cli.common import emit, json_option, note, progress, say, show_table
from kedit_core.cli.outputs import OutputPath
from kedit_core.errors import InputError, KeditError

if TYPE_CHECKING:
    from kedit_bench.cells import Cell

_ON_SCREEN = 6  # metrics a cell
_SPENT = {"edit": "computing edits", "evaluate": "evaluating them"}


@click.command()
@click.option("--spec", "sheet", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="YAML of it all.")
@click.option("--model", "models", multiple=True, help="Registered name, folder or Hub id; may be given several times.")
@click.option("--method", "-m", "methods", multiple=True, help="Installed method, or all; may be given several times.")
@click.option("--dataset", "datasets", multiple=True, metavar="SOURCE", help="File, dataset, or NAME:PATH.")
@click.option(
    "--scenario", "scenarios", multiple=True, metavar="TEXT", help="single, batch:30 or sequential:100/10@1,10,100."
)
@click.option("--protocol", "protocols", multiple=True, help="How answers are judged (generate and teacher_forced).")
@click.option("--metric", "metrics", multiple=True, help="Measure this, too; `kedit metrics` lists them.")
@click.option("--limit", type=click.IntRange(min=1), help="Take only the first N cases of every dataset.")
@click.option("--seed", type=click.IntRange(min=0), help="Everything random follows from it (0).")
@click.option("--ability", "tasks", multiple=True, metavar="TASK", help="Task of lm-eval (mmlu@5, standard).")
@click.option("--no-baselines", is_flag=True, help="Only the methods named; no ike, no ft_bf.")
@click.option("-o", "--output", type=OutputPath(path_type=Path), help="Folder of results; the same again goes on.")
@click.option("--plan", is_flag=True, help="Show the cells, and do nothing.")
@click.option("--compare", nargs=2, metavar="A B", help="Hold two results against each other (folders, FOLDER:METHOD).")
@json_option
@click.pass_context
def bench(
    context: click.Context,
    /,
    sheet: Path | None,
    output: Path | None,
    plan: bool,
    compare: tuple[str, str] | None,
    json_to: str | None,
    **flags: Any,
) -> None:
    """Measure methods on models and datasets, and write tables and a report.

    Every combination of model, method, dataset and scenario is a cell. A run that was stopped goes on where it was
    when the same command is given again.

    \b
    kedit bench --model factworld:llama -m rome -m memit --dataset factworld --scenario sequential:100 -o results
    kedit bench --spec bench.yaml -o results
    kedit bench --compare results other-results

    Under torchrun or accelerate launch the processes share the cases and batches:

    \b
    torchrun --nproc-per-node 8 --no-python kedit bench --spec bench.yaml -o results
    """
    if compare is not None:
        if sheet is not None or any(flags.values()):
            raise InputError("--compare holds two results against each other, and runs nothing; leave the rest out")
        _compare(compare, output, json_to)
        return
    spec = _spec(sheet, flags)
    from kedit_bench.cells import plan_cells, with_all_methods
    from kedit_core.cli.root import catalogue
    from kedit_core.plugins import Host

    installed = catalogue(context)
    if plan:
        spec = with_all_methods(spec, installed)
        cells, notes = plan_cells(spec, installed, Host(installed))
        data = {"spec": spec.to_dict(), "cells": [_planned(cell) for cell in cells], "notes": notes}
        emit(json_to, lambda: data, lambda: _show_plan(cells, notes))
        return
    if output is None:
        raise InputError("a benchmark needs a folder for its results; give -o FOLDER")
    if output.exists() and not output.is_dir():
        raise InputError(f"-o {output} is a file; give a folder")

    from kedit_bench.distributed import LeaderEnded, leads
    from kedit_bench.run import run_bench

    try:
        found = run_bench(spec, output, catalogue=installed, progress=progress, tell=note)
    except LeaderEnded:
        context.exit(1)  # the leader says why
    if not leads():
        return  # one process speaks for all
    emit(json_to, lambda: found, lambda: _show(found, output))
    failed = [cell for cell in found["cells"] if cell["status"] != "done"]
    if failed:
        raise KeditError(
            f"{len(failed)} of {len(found['cells'])} cells failed; the others are done, and the same command tries "
            "these again"
        )


def _spec(sheet: Path | None, flags: Mapping[str, Any]) -> BenchSpec:
    """The benchmark of a file, or of flags; a few flags may change a file's."""
    if sheet is None:
        return spec_from(_from_flags(flags), "the flags")
    given = [name for name in ("models", "methods", "datasets", "scenarios") if flags[name]]
    if given:
        raise InputError(f"--spec says which {', '.join(given)} are run; leave the flags out, or the file")
    data = {**read_spec(sheet).to_dict(), **_rest(flags)}
    if flags["limit"] is not None:
        data["datasets"] = [{**dataset, "limit": flags["limit"]} for dataset in data["datasets"]]
    return spec_from(data, str(sheet))


def _from_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    for name, option in (("models", "--model"), ("methods", "--method"), ("datasets", "--dataset")):
        if not flags[name]:
            raise InputError(f"a benchmark needs {option}, once or several times, or --spec FILE")
    data: dict[str, Any] = {name: list(flags[name]) for name in ("models", "methods")}
    data["datasets"] = [{"source": source, "limit": flags["limit"]} for source in flags["datasets"]]
    if flags["scenarios"]:
        data["scenarios"] = list(flags["scenarios"])
    return {**data, **_rest(flags)}


def _rest(flags: Mapping[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {name: list(flags[name]) for name in ("protocols", "metrics") if flags[name]}
    if flags["seed"] is not None:
        data["seed"] = flags["seed"]
    if flags["tasks"]:
        data["ability"] = {"tasks": list(flags["tasks"])}
    if flags["no_baselines"]:
        data["baselines"] = False
    return data


def _planned(cell: Cell) -> dict[str, Any]:
    return {
        "model": cell.model.called,
        "method": cell.method.name,
        "label": cell.method.called,
        "dataset": cell.dataset.label,
        "scenario": cell.scenario.to_dict(),
        "requests": len(cell.requests),
        "metrics": list(cell.metrics),
    }


def _show_plan(cells: Sequence[Cell], notes: Sequence[str]) -> None:
    rows = [
        (cell.model.called, cell.method.called, cell.dataset.label, str(cell.scenario), str(len(cell.requests)))
        for cell in cells
    ]
    show_table(("model", "method", "dataset", "scenario", "requests"), rows)
    for text in notes:
        note(f"note: {text}")
    say("\nNothing was done.")


def _show(found: Mapping[str, Any], folder: Path) -> None:
    """A line for each cell with what most people look at first; the rest is in the files."""
    from kedit_core.cli.plan import human_time
    from kedit_core.evaluation.report import format_value

    cells = [cell for cell in found["cells"] if cell["evaluation"] is not None]
    names = list(dict.fromkeys(name for cell in cells for name in cell["evaluation"]["metrics"]))
    shown = [name for name in names if not name.startswith("efficiency.")][:_ON_SCREEN]
    rows = []
    for cell in cells:
        metrics = cell["evaluation"]["metrics"]
        values = [
            format_value(metrics[name]["value"], metrics[name]["unit"]) if name in metrics else "" for name in shown
        ]
        scenario = cell["scenario"]
        how = scenario["kind"] if scenario["kind"] == "single" else f"{scenario['kind']}:{scenario['size']}"
        rows.append((cell["model"], cell["label"], cell["dataset"], how, *values))
    show_table(("model", "method", "dataset", "scenario", *shown), rows)
    spent = {part: sum(cell["seconds"][part] for cell in found["cells"]) for part in ("total", "edit", "evaluate")}
    shares = ", ".join(f"{human_time(spent[part])} {what}" for part, what in _SPENT.items())
    say(f"\n{human_time(spent['total'])} in all: {shares}, the rest loading models and reading them unedited")
    say(f"written: {folder / 'bench.json'}, {folder / 'bench.csv'}, {folder / 'report.html'}")


def _compare(pair: tuple[str, str], output: Path | None, json_to: str | None) -> None:
    try:
        from kedit_bench.compare_view import run_comparison
    except ImportError as error:
        raise InputError("this build of kedit-bench cannot compare; update it") from error
    run_comparison(pair, output, json_to)
