"""The command ``kedit bench``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench_tools import catalogue, figures, model_folder, request_file
from click.testing import CliRunner, Result

from kedit_bench.commands.bench import _rows_on_screen, _sizes, _warned
from kedit_bench.results import times_kept
from kedit_bench.spec import ScenarioSpec
from kedit_core.cli.root import kedit
from kedit_core.plugins import Catalogue


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and requests, and the toy methods installed."""
    installed = catalogue()
    monkeypatch.setattr(Catalogue, "installed", classmethod(lambda cls: installed))
    model_folder(tmp_path / "model")
    request_file(tmp_path / "cases.jsonl", 4)
    return tmp_path


def invoke(work: Path, *arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(kedit, ["bench", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def least(work: Path) -> list[str | Path]:
    data: list[str | Path] = ["--model", work / "model", "-m", "nudge", "--dataset", work / "cases.jsonl"]
    return [*data, "--protocol", "teacher_forced", "--no-baselines"]


def test_flags_and_a_file_make_the_same_benchmark(work: Path) -> None:
    flags = [*least(work), "--scenario", "batch:2", "--scenario", "sequential:4/2@2", "--limit", "3", "--seed", "7"]
    by_flags = json.loads(invoke(work, *flags, "--plan", "--json").stdout)
    sheet = work / "bench.yaml"
    sheet.write_text(json.dumps(by_flags["spec"]))
    assert json.loads(invoke(work, "--spec", sheet, "--plan", "--json").stdout) == by_flags
    assert [cell["requests"] for cell in by_flags["cells"]] == [2, 3]
    changed = json.loads(invoke(work, "--spec", sheet, "--limit", "1", "--seed", "8", "--plan", "--json").stdout)
    assert [cell["requests"] for cell in changed["cells"]] == [1, 1] and changed["spec"]["seed"] == 8


def test_a_plan_does_nothing(work: Path) -> None:
    before = sorted(work.rglob("*"))
    result = invoke(work, *least(work), "-m", "nudge_one", "--scenario", "batch:2", "--plan")
    assert "nudge" in result.stdout and result.stdout.endswith("Nothing was done.\n")
    assert "note: nudge_one cannot edit in scenario batch, and is left out there" in result.stderr
    assert sorted(work.rglob("*")) == before


def test_a_plan_shows_what_will_be(work: Path) -> None:
    scenarios = ["--scenario", "batch:3", "--scenario", "sequential:9/2@1,4"]
    result = invoke(work, *least(work), *scenarios, "--plan")
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith("model  ")]
    head, batch, sequence = rows
    assert " ".join(head) == "model method dataset scenario size a round measured after requests"
    assert batch[2:] == ["cases.jsonl", "batch", "3", "3"]  # one of the four is left over
    assert sequence[2:] == ["cases.jsonl", "sequential", "4", "2", "2,", "4", "4"]
    for told in (
        "batch:3 on cases.jsonl: 1 request is left over by batches of 3",
        "sequential:9/2: only 4 facts in cases.jsonl",
        "sequential:9/2: checkpoint 1 is no end of a round of 2; measured after 2",
    ):
        assert f"note: {told}\n" in result.stderr


def test_of_many_checkpoints_a_plan_shows_a_few() -> None:
    scenario = ScenarioSpec(kind="sequential", size=20, batch_size=2, checkpoints=tuple(range(2, 21, 2)))
    assert _sizes(scenario) == ("20", "2", "2, 4, 6, 8, 10, 12, ..., 20")


def test_a_plan_refuses_what_the_run_does(work: Path) -> None:
    arguments: list[str | Path] = [
        "--model",
        work / "model",
        "-m",
        "nudge_one",
        "--dataset",
        work / "cases.jsonl",
        "--no-baselines",
    ]
    for more in ("--plan", f"-o{work / 'out'}"):
        result = invoke(work, *arguments, "--scenario", "batch:2", more, code=2)
        assert "there is nothing to run: nudge_one cannot edit in scenario batch" in result.stderr


def test_a_mix_has_a_row_for_each_source() -> None:
    def metric(value: float | None) -> dict[str, Any]:
        return {"value": value, "unit": "share"}

    cell = {
        "model": "m", "label": "rome", "dataset": "mixed", "scenario": {"kind": "batch", "size": 4},
        "evaluation": {"metrics": {"a": metric(None), "b": metric(None)}},
        "by_source": {"factworld": {"a": 0.5, "b": 1.0}, "zsre": {"a": 0.25}},
    }  # fmt: skip
    assert list(_rows_on_screen(cell, ["a", "b", "c"])) == [
        ("m", "rome", "mixed: factworld", "batch:4", "50.0 %", "100.0 %", ""),
        ("m", "rome", "mixed: zsre", "batch:4", "25.0 %", "-", ""),
    ]
    whole = {**cell, "by_source": {}, "evaluation": {"metrics": {"a": metric(0.75)}}}
    assert list(_rows_on_screen(whole, ["a"])) == [("m", "rome", "mixed", "batch:4", "75.0 %")]


def test_warnings_are_summed_up_by_code() -> None:
    def cell(*codes: str) -> dict[str, Any]:
        return {"warnings": [{"code": code, "message": "", "count": 5} for code in codes]}

    assert _warned([cell(), cell()]) is None
    assert (
        _warned([cell("few", "big"), cell(), cell("few")]) == "2 cells with warnings: few (2), big (1); see the report"
    )
    assert _warned([cell("few")]) == "1 cell with warnings: few (1); see the report"


def test_a_run_and_the_same_again(work: Path) -> None:
    out = work / "out"
    first = invoke(work, *least(work), "-o", out)
    assert "model" in first.stdout and "single" in first.stdout and "tf_token.reliability" in first.stdout
    assert "note: [1/1] nudge on model, cases.jsonl, single: done" in first.stderr
    bench = json.loads((out / "bench.json").read_text())
    assert (out / "bench.csv").is_file()
    assert re.search(r" in all: .* computing edits, .* evaluating them, the rest", first.stdout)
    assert "nothing was run" not in first.stderr
    again = invoke(work, *least(work), "-o", out, "--json")
    found = json.loads(again.stdout)
    assert figures(found) == figures(bench)
    assert "note: everything was there; nothing was run\n" in again.stderr
    assert found["manifest"]["started"] == bench["manifest"]["started"]


def test_a_rest_is_told_counted_and_summed_up(work: Path) -> None:
    result = invoke(work, *least(work), "--scenario", "batch:3", "-o", work / "out")
    (cell,) = json.loads((work / "out" / "bench.json").read_text())["cells"]
    assert cell["cases"] == len(cell["evaluation"]["metrics"]["tf_token.reliability"]["cases"]) == 3
    assert "note: batch:3 on cases.jsonl: 1 request is left over by batches of 3\n" in result.stderr
    codes = {warning["code"] for warning in cell["warnings"]}
    assert "left_over" in codes and "note: 1 cell with warnings: " in result.stderr
    assert "left_over (1)" in result.stderr.splitlines()[-1]


def test_a_failed_cell_gives_exit_code_1(work: Path) -> None:
    result = invoke(work, *least(work), "-m", "fails_halfway", "-o", work / "out", code=1)
    assert "1 of 2 cells failed" in result.stderr and "FAILED: " in result.stderr
    assert [cell["status"] for cell in json.loads((work / "out" / "bench.json").read_text())["cells"]] == [
        "done",
        "failed",
    ]


def test_what_is_wrong_is_told_in_a_sentence(work: Path) -> None:
    (work / "file").write_text("")
    for arguments, told in (
        ([], "a benchmark needs --model"),
        (least(work), "give -o FOLDER"),
        ([*least(work), "-o", work / "file"], "is a file; give a folder"),
        ([*least(work), "--scenario", "sequential:a", "--plan"], "write single, batch:30, or sequential"),
        ([*least(work), "-m", "nugde", "--plan"], "nugde"),
        (["--compare", "a", "b", "--model", "m"], "leave the rest out"),
        (["--spec", work / "cases.jsonl", "--model", "m", "--plan"], "--spec says which models are run"),
    ):
        result = invoke(work, *arguments, code=2)
        assert told in result.stderr and "Traceback" not in result.output


def test_a_second_run_in_the_folder_is_refused(work: Path) -> None:
    from kedit_bench.state import only_one

    with only_one(work / "out"):
        result = invoke(work, *least(work), "-o", work / "out", code=2)
    assert "is running a benchmark in" in result.stderr


def test_help_and_the_reader_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import kedit_bench.commands.bench, kedit_bench.reader, kedit_bench.table\n"
    )
    paths = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=paths)


def test_comparing_is_handed_on(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    called: list[Any] = []
    module = SimpleNamespace(run_comparison=lambda *given: called.append(given))
    monkeypatch.setitem(sys.modules, "kedit_bench.compare_view", module)
    invoke(work, "--compare", "a", "b:rome", "-o", work / "c.html")
    assert called == [(("a", "b:rome"), work / "c.html", None)]


def test_times_are_kept_of_the_same_cells_only(tmp_path: Path) -> None:
    file, times = tmp_path / "bench.json", {"started": "then", "finished": "later"}
    file.write_text(json.dumps({"cells": [{"id": "a"}, {"id": "b"}], "manifest": {**times, "threads": 1}}))
    assert times_kept(file, [{"id": "a"}, {"id": "b"}]) == times
    assert times_kept(file, [{"id": "a"}]) == times_kept(tmp_path / "none", []) == {}
    for broken in ("{", "[]", '{"cells": [{"id": "a"}]}'):
        file.write_text(broken)
        assert times_kept(file, [{"id": "a"}]) == {}
