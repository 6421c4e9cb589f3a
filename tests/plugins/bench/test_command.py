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
    assert [cell["requests"] for cell in by_flags["cells"]] == [3, 3]
    changed = json.loads(invoke(work, "--spec", sheet, "--limit", "1", "--seed", "8", "--plan", "--json").stdout)
    assert [cell["requests"] for cell in changed["cells"]] == [1, 1] and changed["spec"]["seed"] == 8


def test_a_plan_does_nothing(work: Path) -> None:
    before = sorted(work.rglob("*"))
    result = invoke(work, *least(work), "-m", "nudge_one", "--scenario", "batch:2", "--plan")
    assert "nudge" in result.stdout and result.stdout.endswith("Nothing was done.\n")
    assert "note: nudge_one cannot edit in scenario batch, and is left out there" in result.stderr
    assert sorted(work.rglob("*")) == before


def test_a_run_and_the_same_again(work: Path) -> None:
    out = work / "out"
    first = invoke(work, *least(work), "-o", out)
    assert "model" in first.stdout and "single" in first.stdout and "tf_token.reliability" in first.stdout
    assert "note: [1/1] nudge on model, cases.jsonl, single: done" in first.stderr
    bench = json.loads((out / "bench.json").read_text())
    assert (out / "bench.csv").is_file()
    assert re.search(r" in all: .* computing edits, .* evaluating them, the rest", first.stdout)
    again = invoke(work, *least(work), "-o", out, "--json")
    assert figures(json.loads(again.stdout)) == figures(bench)


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
