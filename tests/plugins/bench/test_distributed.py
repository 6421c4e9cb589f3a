"""Several processes at one benchmark: the result is that of one, and nobody waits for a process that is gone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bench_tools import figures, model_folder, request_file, run
from gloo_tools import free_port
from warm_processes import WarmProcess

from kedit_bench import distributed
from kedit_bench.distributed import Company, LeaderEnded, LostError, company, leads, own_device
from kedit_bench.distributed_parts import plan_digest, same_plan, unfinished
from kedit_bench.state import CellState
from kedit_core.errors import InputError

SCENARIOS = ("single", "batch:10", "sequential:12/2@2,6")

# every process writes down which parts it has finished
MAIN = """
import os, sys, time
import bench_tools
from kedit_bench import distributed
from kedit_bench.state import CellState
from kedit_core.plugins import Catalogue
installed = bench_tools.catalogue()
Catalogue.installed = classmethod(lambda cls: installed)
import torch
torch.set_num_threads(1)
finish = CellState.finish_part
def logged(self, number, content):
    if os.environ.get("FAILS") == os.environ.get("RANK") and "single" in self.folder.name:
        raise MemoryError("no room")
    finish(self, number, content)
    with open(os.environ["PARTS"], "a") as stream:
        stream.write(f"{os.environ.get('RANK', 0)} {self.folder.name} {number}\\n")
    if os.environ.get("HANGS") == os.environ.get("RANK"):
        time.sleep(600)
CellState.finish_part = logged
from kedit_core.cli.root import kedit
kedit.main(["bench", *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("several")
    model_folder(path / "model")
    request_file(path / "cases.jsonl", 60)
    return path


def arguments(folder: Path, out: Path, *methods: str) -> list[str]:
    scenarios = [text for scenario in SCENARIOS for text in ("--scenario", scenario)]
    named = [text for method in methods or ("nudge",) for text in ("-m", method)]
    data = ["--model", str(folder / "model"), "--dataset", str(folder / "cases.jsonl"), *named]
    return [*data, *scenarios, "--protocol", "teacher_forced", "--no-baselines", "-o", str(out)]


def environment(cache: Path, **more: str) -> dict[str, str]:
    paths = [path for path in sys.path if path] + [str(Path(__file__).parents[2])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "KEDIT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, "PARTS": str(cache) + ".parts", **more}


def start(given: Sequence[str], cache: Path, count: int = 2, **more: str) -> list[WarmProcess]:
    """``kedit bench`` as a launcher starts it, in so many processes."""
    several = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [
        WarmProcess(MAIN, given, environment(cache, **several, RANK=str(rank), LOCAL_RANK=str(rank), **more))
        for rank in range(count)
    ]


def ended(processes: Sequence[WarmProcess]) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    try:
        told = [each.communicate(timeout=200) for each in processes]
    finally:
        for each in processes:
            each.kill()
    return [(each.returncode, *texts) for each, texts in zip(processes, told, strict=True)]


def result(out: Path) -> dict[str, Any]:
    found = figures(json.loads((out / "bench.json").read_text()))
    found["manifest"].pop("processes")
    return found


def shares(cache: Path) -> dict[str, set[tuple[str, str]]]:
    """process -> the parts (cell, number) that it finished."""
    found: dict[str, set[tuple[str, str]]] = {}
    for line in Path(str(cache) + ".parts").read_text().splitlines():
        rank, name, number = line.split(" ")
        found.setdefault(rank, set()).add((name, number))
    return found


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    """The result of one process."""
    settings = {"methods": ["nudge"], "scenarios": list(SCENARIOS)}
    run(folder, folder / "alone", **settings)
    return result(folder / "alone")


@pytest.mark.slow
def test_two_processes_equal_one(folder: Path, alone: dict[str, Any], tmp_path: Path) -> None:
    """Bit for bit, but for clocks and memory; and both did their share."""
    leader, follower = ended(start(arguments(folder, tmp_path / "out"), tmp_path / "cache"))
    assert (leader[0], follower[0]) == (0, 0), leader[2] + follower[2]
    assert result(tmp_path / "out") == alone
    assert json.loads((tmp_path / "out" / "bench.json").read_text())["manifest"]["processes"] == 2
    done = shares(tmp_path / "cache")
    numbers = {rank: {("batch" in name, int(number)) for name, number in parts} for rank, parts in done.items()}
    assert {number for batch, number in numbers["1"] if batch} == {1, 3, 5}
    assert {number for batch, number in numbers["1"] if not batch} == {2}
    assert not done["0"] & done["1"] and sum("sequential" in name for name, _ in done["0"]) == 3
    assert follower[1] == "" and "note: " not in follower[2] and "nudge" in leader[1]
    assert not list((tmp_path / "out").rglob("part-*"))
    again = ended(start(arguments(folder, tmp_path / "out"), tmp_path / "cache"))
    assert [each[0] for each in again] == [0, 0] and result(tmp_path / "out") == alone
    assert shares(tmp_path / "cache") == done, "nothing is run again"


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others(folder: Path, alone: dict[str, Any], tmp_path: Path) -> None:
    """With a sentence and soon; and the next run, by one process, goes on from what all have done."""
    for victim in (1, 0):
        out = tmp_path / f"out-{victim}"
        processes = start(arguments(folder, out), tmp_path / f"cache-{victim}", HANGS=str(victim))
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not any(
            line.startswith(f"{victim} ") for line in told_parts(tmp_path / f"cache-{victim}")
        ):
            time.sleep(0.05)
        processes[victim].kill()
        begun = time.monotonic()
        codes = ended(processes)
        assert time.monotonic() - begun < 60
        assert codes[victim][0] == -signal.SIGKILL and codes[1 - victim][0] == 1
        assert (
            f"process {victim} of 2" in codes[1 - victim][2] and "give the same command again" in codes[1 - victim][2]
        )
        assert "Traceback" not in codes[1 - victim][2] and not (out / "bench.json").exists()
    last = start(arguments(folder, tmp_path / "out-1"), tmp_path / "cache-1", count=1)
    ((code, _, told),) = ended(last)
    assert code == 0 and "resuming: " in told
    assert result(tmp_path / "out-1") == alone


def told_parts(cache: Path) -> list[str]:
    path = Path(str(cache) + ".parts")
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
def test_a_part_that_fails_elsewhere_fails_its_cell_only(folder: Path, alone: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    leader, follower = ended(start(arguments(folder, out), tmp_path / "cache", FAILS="1"))
    assert (leader[0], follower[0]) == (1, 0), leader[2] + follower[2]
    assert "1 of 3 cells failed" in leader[2]
    cells = json.loads((out / "bench.json").read_text())["cells"]
    states = {cell["scenario"]["kind"]: (cell["status"], cell["error"]) for cell in cells}
    done = ("done", None)
    assert states == {"single": ("failed", "MemoryError: no room"), "batch": done, "sequential": done}
    (trace,) = out.glob("cells/*single*/error.txt")
    assert "in logged" in trace.read_text(), "where it came from, as the process that failed has it"
    again = ended(start(arguments(folder, out), tmp_path / "cache"))
    assert [each[0] for each in again] == [0, 0] and "resuming: 2 of 3 parts" in again[0][2]
    assert result(out) == alone


@pytest.mark.slow
def test_what_the_leader_refuses_ends_all(folder: Path, tmp_path: Path) -> None:
    """The folder is taken by another benchmark: one sentence, from the first process."""
    from kedit_bench.state import only_one

    with only_one(tmp_path / "out"):
        leader, follower = ended(start(arguments(folder, tmp_path / "out"), tmp_path / "cache"))
    assert (leader[0], follower[0]) == (2, 1)
    assert "is running a benchmark in" in leader[2] and "Error" not in follower[2]


LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--nproc-per-node", "2"),
    "accelerate": (
        "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_under_a_launcher(launcher: str, folder: Path, alone: dict[str, Any], tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(MAIN)
    module, *settings = LAUNCHERS[launcher]
    pytest.importorskip(module.partition(".")[0])
    port = free_port()
    flag = "--master-port" if launcher == "torchrun" else "--main_process_port"
    done = subprocess.run(
        [
            sys.executable, "-m", module, *settings, flag, port, str(script),
            *arguments(folder, tmp_path / "out"),
        ],
        env=environment(tmp_path / "cache"), capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "out") == alone
    assert set(shares(tmp_path / "cache")) == {"0", "1"}


# ---------------------------------------------------------------- in one process
class Shelf:
    """A store of torch.distributed that lies in this process; ``closed`` as when the leader is gone."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.closed = False

    def _open(self) -> None:
        if self.closed:
            raise RuntimeError("Connection reset by peer")

    def set(self, key: str, value: str) -> None:
        self._open()
        self.held[key] = value.encode()

    def get(self, key: str) -> bytes:
        self._open()
        return self.held[key]

    def check(self, keys: list[str]) -> bool:
        self._open()
        return all(key in self.held for key in keys)


@pytest.fixture
def pair() -> Iterator[tuple[Company, Company, Shelf]]:
    shelf = Shelf()
    yield Company(0, 2, 0.5, shelf), Company(1, 2, 0.5, shelf), shelf


def test_what_one_says_the_other_hears(pair: tuple[Company, Company, Shelf]) -> None:
    leader, other, _ = pair
    with leader.living(), other.living():
        leader.say("cell 1", "shared")
        leader.say("cell 1", "own")  # too late
        assert other.hear("cell 1", 0) == "shared"
        other.say("cell 1 of 1", "{}")
        assert leader.hear("cell 1 of 1", 1) == "{}"


def test_a_process_that_gives_no_sign_of_life_is_gone(pair: tuple[Company, Company, Shelf]) -> None:
    leader, other, shelf = pair
    begun = time.monotonic()
    with leader.living(), pytest.raises(LostError, match="process 1 of 2 is gone"):
        leader.hear("cell 1 of 1", 1)
    assert 0.4 < time.monotonic() - begun < 5
    with leader.living(), other.living():
        shelf.closed = True
        with pytest.raises(LostError, match="process 0 of 2"):
            other.hear("cell 1", 0)
        with pytest.raises(LostError, match="process 0 of 2"):
            other.say("cell 1 of 1", "")


def test_a_process_that_takes_long_is_waited_for(
    pair: tuple[Company, Company, Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than patience, as long as it gives signs of life."""
    monkeypatch.setattr(distributed, "_BEAT", 0.05)
    leader, other, shelf = pair
    with leader.living(), other.living():
        import threading

        threading.Timer(1.2, shelf.set, ["cell 1 of 1", "done"]).start()
        begun = time.monotonic()
        assert leader.hear("cell 1 of 1", 1) == "done"
    assert time.monotonic() - begun > 1.0


def test_a_dead_process_of_this_machine_is_noticed_at_once(pair: tuple[Company, Company, Shelf]) -> None:
    leader, _, shelf = pair
    leader.patience = 60
    gone = subprocess.Popen([sys.executable, "-c", ""])
    time.sleep(0.2)
    for waited in (False, True):  # first as a process that ended and was not asked how
        if waited:
            gone.wait()
        shelf.set("who/1", f"{socket.gethostname()} {gone.pid}")
        begun = time.monotonic()
        with pytest.raises(LostError, match=f"process 1 of 2 .*process {gone.pid}. is gone"):
            leader.hear("cell 1 of 1", 1)
        assert time.monotonic() - begun < 10
    assert gone.returncode == 0


@pytest.mark.parametrize("error", [None, InputError("no such file"), KeyboardInterrupt()])
def test_the_leader_says_that_it_has_ended(
    pair: tuple[Company, Company, Shelf], error: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_PARTING", 0.2)
    leader, other, _ = pair
    try:
        with leader.leading():
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    with pytest.raises(LeaderEnded, match=type(error).__name__ if error else "before this one had all"):
        other.hear("cell 7", 0)


def test_parts_are_shared_and_the_last_one_is_the_leader_s() -> None:
    for count in (1, 2, 3, 5):
        for total in (1, 2, 7, 10):
            owners = [
                [rank for rank in range(count) if Company(rank, count).mine(number, total)]
                for number in range(1, total + 1)
            ]
            assert all(len(each) == 1 for each in owners) and owners[-1] == [0]
            share = [sum(owner == [rank] for owner in owners) for rank in range(count)]
            assert max(share) - min(share) <= 1


def test_the_part_at_which_a_process_failed(tmp_path: Path) -> None:
    state, second = CellState(tmp_path, "x"), Company(1, 2)
    assert [number for number in range(1, 7) if second.mine(number, 6)] == [1, 3, 5]
    assert unfinished(state, second, 6) == 1
    for number in (1, 2, 5):
        state.finish_part(number, {})
    assert unfinished(state, second, 6) == 3
    state.finish_part(3, {})
    assert unfinished(state, second, 6) == 7 and unfinished(state, Company(0, 2), 6) == 4


def test_processes_with_other_cells_are_refused() -> None:
    cells: Any = [SimpleNamespace(requests=(1, 2))]
    same_plan(cells, plan_digest(cells))
    with pytest.raises(InputError, match="same command and files"):
        same_plan(cells, plan_digest([*cells, *cells]))


def test_one_process_is_its_own_company(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with company() as one:
        assert (one.rank, one.count, one.first, list(one.others), leads()) == (0, 1, True, [], True)
        one.say("cell 1", "own")
        with one.leading():
            pass
        with pytest.raises(LostError):
            one.hear("cell 1", 0)
    assert own_device("cuda") == "cuda" and own_device(None) is None


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name, value in {"WORLD_SIZE": "6", "RANK": "5", "LOCAL_RANK": "5"}.items():
        monkeypatch.setenv(name, value)
    assert own_device("cuda") == "cuda:1" and own_device("cuda:3") == "cuda:3" and own_device("cpu") == "cpu"
    assert own_device(None) is None and not leads()


def test_a_group_that_is_there_already_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    group = SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True, get_world_size=lambda: 2)
    monkeypatch.setattr(distributed, "dist", group)
    with pytest.raises(InputError, match="set up already"), company():
        pass


def test_processes_that_do_not_all_come_are_not_waited_for_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    begun = time.monotonic()
    with pytest.raises(LostError, match="did not all meet"), company(patience=1.0):
        pass
    assert time.monotonic() - begun < 20
