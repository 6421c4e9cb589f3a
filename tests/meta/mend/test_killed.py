"""``kedit train`` killed at random, and resumed: the editor of a training that nobody disturbed, to the bit."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from meta_tools import records
from warm_processes import WarmProcess

from kedit_core.requests import dump_requests
from kedit_core.testing.tiny import tiny
from kedit_core.training.folder import content_digest, read_state

COMMAND = "import sys; from kedit_core.cli.root import kedit; kedit.main(sys.argv[1:])"
SETTINGS = {
    "layers": "[-1]", "rank": 8, "lr": 1e-3, "accumulate": 3, "iterations": 200, "val_interval": 40, "val_items": 4,
    "save_interval": 7, "log_interval": 20,
}  # fmt: skip


def training(folder: Path, name: str, *more: str) -> WarmProcess:
    """``kedit train`` in a process of its own."""
    words = ["train", "model", "-m", "mend", "--requests", "train.jsonl", "--validate", "held.jsonl", "-o", name, *more]
    words += [word for key, value in SETTINGS.items() for word in ("-p", f"{key}={value}")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    return WarmProcess(COMMAND, words, environment, folder)


@pytest.mark.slow
def test_an_editor_whose_training_was_killed_three_times_is_the_same(tmp_path: Path) -> None:
    for each in tiny("gpt2"):
        each.save_pretrained(tmp_path / "model")
    dump_requests(records(16), tmp_path / "train.jsonl")
    dump_requests(records(6, 30), tmp_path / "held.jsonl")
    whole = training(tmp_path, "whole")
    last, draw, resume = tmp_path / "killed.training" / "last.safetensors", random.Random(1), ()
    for _ in range(3):
        before = last.stat().st_mtime_ns if last.exists() else 0
        process = training(tmp_path, "killed", *resume)
        while not last.exists() or last.stat().st_mtime_ns == before:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        time.sleep(draw.uniform(0.0, 0.2))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        resume = ("--resume",)
    assert not (tmp_path / "killed").exists()
    for process in (whole, training(tmp_path, "killed", *resume)):
        said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    one, two = (tmp_path / name / "editor.safetensors" for name in ("whole", "killed"))
    assert one.read_bytes() == two.read_bytes()
    assert content_digest(read_state(tmp_path / "whole")) == content_digest(read_state(tmp_path / "killed"))
