"""A benchmark that is killed, twice, wherever it happens to be, and goes on: its result is as if it never had been."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
from bench_tools import figures, model_folder, request_file, start

SCENARIOS = ("single", "batch:10", "sequential:60/2@2,10,20,30,40,50")


def arguments(folder: Path, out: Path) -> list[str | Path]:
    scenarios = [text for scenario in SCENARIOS for text in ("--scenario", scenario)]
    methods = ["-m", "nudge", "-m", "gathering"]
    data: list[str | Path] = ["--model", folder / "model", "--dataset", folder / "cases.jsonl"]
    return [*data, *methods, *scenarios, "--protocol", "teacher_forced", "--no-baselines", "-o", out]


def files(out: Path) -> int:
    return len([path for name in ("part-*.json", "result.json") for path in out.rglob(name)])


@pytest.mark.slow
def test_killed_twice_it_ends_as_if_it_had_never_been(tmp_path: Path) -> None:
    model_folder(tmp_path / "model")
    request_file(tmp_path / "cases.jsonl", 60)
    whole = start(arguments(tmp_path, tmp_path / "whole"), tmp_path / "cache-1")
    _, told = whole.communicate(timeout=300)
    assert whole.returncode == 0, told

    random_moment = random.Random()
    out = tmp_path / "out"
    for most in (4, 9):  # so many files more before it may be killed
        wanted = files(out) + random_moment.randint(1, most)
        process = start(arguments(tmp_path, out), tmp_path / "cache-2")
        deadline = time.monotonic() + 240
        while files(out) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(random_moment.random() * 0.5)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
        assert not (out / "bench.json").exists()

    last = start(arguments(tmp_path, out), tmp_path / "cache-2")
    _, told = last.communicate(timeout=300)
    assert last.returncode == 0, told
    expected, found = (json.loads((path / "bench.json").read_text()) for path in (tmp_path / "whole", out))
    assert figures(found) == figures(expected)
    assert not list(out.rglob("part-*")) and not list(out.rglob("*.tmp"))
