"""State on disk: believed only when it is whole and meant for this very cell; one run at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bench_tools import catalogue, some_requests

from kedit_bench.state import CellState, only_one, write_json
from kedit_core import Editor
from kedit_core.errors import InputError, KeditError
from kedit_core.testing.tiny import tiny

CONTENT = {"value": 0.1, "text": "ünï", "list": [1, None]}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    state = CellState(tmp_path / "cell", "id")
    assert state.part(1) is None
    state.finish_part(1, CONTENT)
    assert state.part(1) == CONTENT == CellState(tmp_path / "cell", "id").part(1)
    assert CellState(tmp_path / "cell", "other id").part(1) is None


@pytest.mark.parametrize("broken", ["", "{", "[1]", "null", '{"format": 1}'])
def test_a_broken_file_counts_as_not_there(tmp_path: Path, broken: str) -> None:
    state = CellState(tmp_path, "id")
    state.finish_part(1, CONTENT)
    (path,) = tmp_path.glob("part-*")
    path.write_text(broken)
    assert state.part(1) is None


def test_a_changed_number_is_not_believed(tmp_path: Path) -> None:
    state = CellState(tmp_path, "id")
    state.finish_part(1, CONTENT)
    (path,) = tmp_path.glob("part-*")
    path.write_text(path.read_text().replace("0.1", "0.9"))
    assert state.part(1) is None


def test_a_patch_is_the_one_its_record_names(tmp_path: Path) -> None:
    editor = Editor(*tiny("llama"), "nudge", catalogue=catalogue())
    one, other = (editor.compute(request) for request in some_requests(2))
    state = CellState(tmp_path / "cell", "id")
    assert state.patch(1, one.id) is None
    state.save_patch(1, one)
    found = state.patch(1, one.id)
    assert found is not None and found.to_bytes() == one.to_bytes()
    assert state.patch(1, other.id) is None
    (path,) = (tmp_path / "cell").glob("segment-*")
    path.write_bytes(path.read_bytes()[:-1])
    assert state.patch(1, one.id) is None


def test_a_finished_cell_keeps_its_result_only(tmp_path: Path) -> None:
    editor = Editor(*tiny("llama"), "nudge", catalogue=catalogue())
    state = CellState(tmp_path, "id")
    state.write("settings", {})
    state.finish_part(1, CONTENT)
    state.save_patch(1, editor.compute(some_requests(1)[0]))
    state.finish({"all": CONTENT})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "settings.json"]
    assert state.read("result") == {"all": CONTENT}


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KeditError, match="cannot be written"):
        write_json(tmp_path / "file" / "x.json", {})


def test_a_second_run_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    refused = pytest.raises(InputError, match="another process is running a benchmark")
    with only_one(tmp_path), refused, only_one(tmp_path):
        raise AssertionError("two at once")
    with only_one(tmp_path):
        pass


def test_a_killed_process_lets_go_of_the_lock_whatever_is_in_the_file(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from kedit_bench.state import only_one\n"
        "with only_one(Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(InputError, match="another process"), only_one(tmp_path):
        raise AssertionError("two at once")
    holder.kill()
    holder.wait()
    for content in ("", "half wr", "[" * 100_000):
        (tmp_path / "bench.lock").write_text(content)
        with only_one(tmp_path):
            pass


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KeditError, match="cannot be written"), only_one(tmp_path / "file" / "out"):
        raise AssertionError("held")
    (tmp_path / "bench.lock").mkdir()
    with pytest.raises(KeditError, match="cannot be written"), only_one(tmp_path):
        raise AssertionError("held")


def test_what_a_killed_run_was_writing_is_removed_by_the_next(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from kedit_core.files import replacing\n"
        "with replacing(sys.argv[1]) as stream:\n"
        "    stream.write(b'half')\n"
        "    stream.flush()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    cell = tmp_path / "cells" / "one"
    cell.mkdir(parents=True)
    subprocess.run([sys.executable, "-c", script, str(cell / "part-0000.json")], check=False)
    assert len(list(cell.iterdir())) == 1 and not (cell / "part-0000.json").exists()
    with only_one(tmp_path):
        assert not list(cell.iterdir())
