"""The command ``kedit bench``. Imports no torch until it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kedit_bench.reader import read_spec, spec_from
from kedit_bench.spec import BenchSpec, ScenarioSpec
from kedit_core.cli.common import emit, json_option, note, progress, say, show_table
from kedit_core.cli.outputs import OutputPath
from kedit_core.errors import InputError, KeditError

if TYPE_CHECKING:
    from kedit_bench.cells import Cell

_ON_SCREEN = 6  # metrics a cell
_MARKS = 8  # checkpoints a cell of a plan
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
@click.option("--no-baselines", is_flag=True, help="Only the methods named; no ike_context, no ft_bf.")
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
    from kedit_core.cli.groups import catalogue
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
    if (warned := _warned(found["cells"])) is not None:
        note(f"note: {warned}")
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
        "requests": len(cell.edited),
        "metrics": list(cell.metrics),
    }


def _show_plan(cells: Sequence[Cell], notes: Sequence[str]) -> None:
    columns = ("model", "method", "dataset", "scenario", "size", "a round", "measured after", "requests")
    rows = [
        (
            *(cell.model.called, cell.method.called, cell.dataset.label, cell.scenario.kind),
            *_sizes(cell.scenario),
            str(len(cell.edited)),
        )
        for cell in cells
    ]
    show_table(columns, rows)
    for text in notes:
        note(f"note: {text}")
    say("\nNothing was done.")


def _sizes(scenario: ScenarioSpec) -> tuple[str, str, str]:
    """Facts together, facts a round, and checkpoints, as they will be; of many checkpoints the first and the last."""
    if scenario.kind != "sequential":
        return str(scenario.size or ""), "", ""
    marks = [str(mark) for mark in scenario.checkpoints]
    shown = marks if len(marks) <= _MARKS else [*marks[: _MARKS - 2], "...", marks[-1]]
    return str(scenario.size or ""), str(scenario.batch_size), ", ".join(shown)


def _warned(cells: Sequence[Mapping[str, Any]]) -> str | None:
    """A sentence for the warnings of all cells, by code with the number of cells; None where there are none."""
    codes = Counter(code for cell in cells for code in {warning["code"] for warning in cell["warnings"]})
    number = sum(bool(cell["warnings"]) for cell in cells)
    if not number:
        return None
    what = ", ".join(f"{code} ({count})" for code, count in sorted(codes.items(), key=lambda item: (-item[1], item[0])))
    return f"{number} {'cell' if number == 1 else 'cells'} with warnings: {what}; see the report"


def _rows_on_screen(cell: Mapping[str, Any], shown: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """A cell's row; of a mix, which has no means over its sources, a row for each of them."""
    from kedit_core.evaluation.report import format_value

    metrics, scenario = cell["evaluation"]["metrics"], cell["scenario"]
    how = scenario["kind"] if scenario["kind"] == "single" else f"{scenario['kind']}:{scenario['size']}"
    whole = {name: result["value"] for name, result in metrics.items()}
    rows = {f"{cell['dataset']}: {source}": values for source, values in cell["by_source"].items()}
    for dataset, values in (rows or {cell["dataset"]: whole}).items():
        texts = [format_value(values.get(name), metrics[name]["unit"]) if name in metrics else "" for name in shown]
        yield (cell["model"], cell["label"], dataset, how, *texts)


def _show(found: Mapping[str, Any], folder: Path) -> None:
    """A line for each cell with what most people look at first; the rest is in the files."""
    from kedit_core.cli.plan import human_time

    cells = [cell for cell in found["cells"] if cell["evaluation"] is not None]
    names = list(dict.fromkeys(name for cell in cells for name in cell["evaluation"]["metrics"]))
    shown = [name for name in names if not name.startswith("efficiency.")][:_ON_SCREEN]
    rows = [row for cell in cells for row in _rows_on_screen(cell, shown)]
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
