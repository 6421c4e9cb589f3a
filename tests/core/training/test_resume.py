"""A training that was interrupted, anywhere and anyhow, ends as one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from core.training.toy_trainer import a_loop, a_toy, equal, moved

from kedit_core.errors import InputError
from kedit_core.training.store import Store


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize("at", [20, 17, 7])
def test_6_resuming_is_bit_for_bit_the_same(at: int, optimizer: str, tmp_path: Path) -> None:
    """Acceptance check 6: also in the middle of an accumulation and of an epoch, with a schedule and statistics."""
    whole = a_toy(optimizer=optimizer, poison=(9,))
    outcome = a_loop(tmp_path / "whole", whole).run()
    first = a_toy(optimizer=optimizer, poison=(9,))
    loop = a_loop(tmp_path / "two", first)
    for _ in range(at):
        loop.advance()
        if loop.counters.iteration % 10 == 0:
            loop.validate()
    loop.save()
    second = a_toy(optimizer=optimizer, poison=() if at > 9 else (9 - at,))
    resumed = a_loop(tmp_path / "two", second)
    resumed.resume()
    again = resumed.run()
    assert equal(moved(second), moved(whole))
    assert again.history == outcome.history
    assert (again.best, again.best_iteration, again.skipped) == (outcome.best, outcome.best_iteration, outcome.skipped)
    assert second.state() == whole.state() and again.updates == outcome.updates


@pytest.mark.parametrize("n", [20, 17, 4])
def test_6_n_and_n_are_2n(n: int, tmp_path: Path) -> None:
    """Acceptance check 6: where the first half ended is no boundary of anything, though it was measured there."""
    whole, half, rest = a_toy(iterations=2 * n), a_toy(iterations=n), a_toy(iterations=2 * n)
    outcome = a_loop(tmp_path / "whole", whole).run()
    first = a_loop(tmp_path / "two", half).run()
    assert first.history[-1]["iteration"] == n
    again = a_loop(tmp_path / "two", a_toy(iterations=n))
    again.resume()
    assert again.run().history == first.history  # nothing is left to do but to look
    loop = a_loop(tmp_path / "two", rest)
    loop.resume()
    assert loop.run().history == outcome.history
    assert equal(moved(rest), moved(whole)) and rest.state() == whole.state()
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "two")
    ]
    timeless = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in each if line["iteration"] % 5 == 0]
        for each in lines
    ]
    assert timeless[0] == timeless[1] and len(timeless[0]) >= n // 5


def test_another_run_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training to resume"):
        a_loop(tmp_path, a_toy()).resume()
    a_loop(tmp_path, a_toy()).save()
    with pytest.raises(InputError, match="differs in data"):
        a_loop(tmp_path, a_toy(), identity={"data": "others", "hparams": a_toy().hparams.lasting()}).resume()
    with pytest.raises(InputError, match="differs in hparams"):
        a_loop(tmp_path, a_toy(lr=1.0)).resume()
    a_loop(tmp_path, a_toy(iterations=99, val_interval=3)).resume()


@pytest.mark.parametrize("killed_at", ["last.safetensors", ".kedit-"])
def test_6_a_kill_while_saving_leaves_a_checkpoint(
    killed_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While writing, before the old file is moved, and between the two renamings."""
    toy = a_toy()
    loop = a_loop(tmp_path, toy)
    for _ in range(6):
        loop.advance()
    loop.save()
    saved = moved(toy)
    for _ in range(3):
        loop.advance()
    replace = Path.replace

    def dying(self: Path, target: Any) -> Path:
        if self.name.startswith(killed_at):
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        loop.save()
    monkeypatch.setattr(Path, "replace", replace)
    fresh = a_toy()
    again = a_loop(tmp_path, fresh)
    again.resume()
    assert again.counters.iteration == 6 and equal(moved(fresh), saved)


def test_the_best_that_a_checkpoint_knows_is_never_lost(tmp_path: Path) -> None:
    """A kill between a new best and the next checkpoint: the checkpoint's own best must still be there."""
    store = Store(tmp_path)
    store.begin(anew=True)
    for iteration, best in ((10, 5), (20, 15), (30, 15)):
        store.save_best({"x": torch.tensor([float(best)])}, {}, best)
        store.save_last({"x": torch.zeros(1)}, {"best": {"iteration": best}, "iteration": iteration})
    store.save_best({"x": torch.tensor([35.0])}, {}, 35)
    state = store.last()[1]
    assert float(store.best(state["best"]["iteration"])[0]["x"]) == 15.0
    assert sorted(path.name for path in tmp_path.glob("best-*")) == ["best-15.safetensors", "best-35.safetensors"]
    (tmp_path / "last.safetensors").write_bytes(b"half of it")
    assert store.last()[1]["iteration"] == 20
    with pytest.raises(InputError, match="cannot be read"):
        store.best(5)
    store.begin(anew=True)
    assert not list(tmp_path.iterdir()) and store.standing() is None


def test_lines_after_the_checkpoint_are_measured_again_not_twice(tmp_path: Path) -> None:
    toy = a_toy(save_interval=7)
    loop = a_loop(tmp_path, toy)
    advance = loop.advance

    def dying() -> None:
        if loop.counters.iteration == 18:
            raise KeyboardInterrupt
        advance()

    loop.advance = dying  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "training", "itera')
    again = a_loop(tmp_path, a_toy(save_interval=7))
    again.resume()
    assert again.counters.iteration == 14
    again.run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [each["iteration"] for each in lines if each["kind"] == "training"] == list(range(5, 41, 5))


KILLED = """
import sys, time
from pathlib import Path
from core.training.toy_trainer import a_loop, a_toy
import torch
torch.set_num_threads(1)
toy = a_toy(iterations=600, save_interval=11, val_interval=50, log_interval=10)
run_step = toy.run_step
def slowly(batch):
    time.sleep(0.002)
    return run_step(batch)
toy.run_step = slowly
folder = Path(sys.argv[1])
loop = a_loop(folder, toy)
if loop._store.standing() is not None:
    loop.resume()
(folder / "started").write_text(str(loop.counters.iteration))
loop.run()
(folder / "done").write_text("")
"""


@pytest.mark.slow
def test_killed_three_times_it_ends_the_same(tmp_path: Path) -> None:
    """kill -9 at random moments of a process of its own; the resumed run's parameters equal to the bit."""
    whole = a_toy(iterations=600, save_interval=11, val_interval=50, log_interval=10)
    outcome = a_loop(tmp_path / "whole", whole).run()
    paths = [path for path in sys.path if path] + [str(Path(__file__).parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    folder, draw, began = tmp_path / "killed", random.Random(0), []
    folder.mkdir()
    command = [sys.executable, "-c", KILLED, str(folder)]
    for _ in range(3):
        (folder / "started").unlink(missing_ok=True)
        process = subprocess.Popen(command, env=environment)
        while not (folder / "started").exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(draw.uniform(0.1, 0.6))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        began.append(int((folder / "started").read_text() or 0))
    assert not (folder / "done").exists()
    subprocess.run(command, env=environment, check=True)
    assert began[0] == 0 and 0 < began[1] < began[2] < 600
    last = a_toy(iterations=600)
    loop = a_loop(folder, last)
    loop.resume()
    assert loop.counters.iteration == 600
    loop._put_best()
    assert equal(moved(last), moved(whole))
    assert loop.counters.history == list(outcome.history)
