"""A training that was interrupted, anywhere and anyhow, ends as one that was not."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from core.training.toy_trainer import Toy, a_loop, a_toy, equal, moved
from warm_processes import WarmProcess

from kedit_core.errors import InputError, KeditError, MethodError
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


def test_patience_is_looked_at_where_validations_are(tmp_path: Path) -> None:
    """A checkpoint between two validations may lie further from the best than patience reaches."""
    whole = a_toy(patience=5)
    outcome = a_loop(tmp_path / "whole", whole).run()
    assert outcome.iterations == 40 and not outcome.stopped_early
    for at in (7, 17):
        loop = a_loop(tmp_path / str(at), a_toy(patience=5))
        for _ in range(at):
            loop.advance()
            if loop.counters.iteration == 10:
                loop.validate()
        loop.save()
        toy = a_toy(patience=5)
        loop = a_loop(tmp_path / str(at), toy)
        loop.resume()
        assert loop.run().history == outcome.history and equal(moved(toy), moved(whole))


def test_what_ended_by_patience_has_ended(tmp_path: Path) -> None:
    settings = {"patience": 5, "lr": 100.0, "val_interval": 3}
    outcome = a_loop(tmp_path, a_toy(**settings)).run()
    assert outcome.stopped_early and outcome.iterations < 40
    again = a_loop(tmp_path, a_toy(**settings))
    again.resume()
    assert again.run().history == outcome.history
    longer = a_loop(tmp_path, a_toy(**{**settings, "patience": 1000}))
    longer.resume()
    assert longer.run().iterations == 40


def test_resuming_what_has_ended_writes_no_line_twice(tmp_path: Path) -> None:
    a_loop(tmp_path, a_toy(iterations=17)).run()
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in before] == [5, 10, 10, 15, 17, 17]
    again = a_loop(tmp_path, a_toy(iterations=17))
    again.resume()
    again.run()
    timeless = [[{**json.loads(line), "seconds": 0} for line in each] for each in (
        before, (tmp_path / "metrics.jsonl").read_text().splitlines()
    )]  # fmt: skip
    assert timeless[0] == timeless[1]


def test_the_best_of_a_training_that_came_apart_can_be_had(tmp_path: Path) -> None:
    """A validation that gives no number ends a training, and the best so far is not lost by it."""
    toy, validate, seen = a_toy(val_interval=3), Toy.validate_step, [0]

    def apart(batch: Any) -> Any:
        stepped, seen[0] = validate(toy, batch), seen[0] + 1
        return evolve(stepped, values={"loss/total": (math.nan, 1.0)}) if seen[0] > 9 else stepped

    toy.validate_step = apart  # type: ignore[method-assign]
    loop = a_loop(tmp_path, toy)
    with pytest.raises(MethodError, match=r"at iteration 12 is not a number; .*--resume and -p iterations=9"):
        loop.run()
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["loss/total"] is None
    again = a_loop(tmp_path, a_toy(val_interval=3, iterations=9))
    again.resume()
    best = again.run()
    assert (best.best_iteration, len(best.history)) == (9, 3)
    further = a_loop(tmp_path, a_toy(val_interval=3, iterations=5))
    further.resume()
    assert (further.run().best_iteration, further.counters.iteration) == (9, 9)


def test_a_measurement_that_is_no_number_stops_nothing(tmp_path: Path) -> None:
    def some(iterations: int) -> Toy:
        toy = a_toy(iterations=iterations)
        run_step = toy.run_step

        def odd(batch: Any) -> Any:
            stepped = run_step(batch)
            return evolve(stepped, values={**stepped.values, "acc": (math.nan, 1.0), "most": (math.inf, 1.0)})

        toy.run_step = odd  # type: ignore[method-assign]
        return toy

    a_loop(tmp_path, some(18)).run()
    loop = a_loop(tmp_path, some(40))
    loop.resume()
    outcome = loop.run()
    assert math.isnan(outcome.history[0]["acc"]) and outcome.history[0]["most"] == math.inf
    assert outcome.iterations == 40


def test_a_full_disk_leaves_what_was_saved(tmp_path: Path) -> None:
    toy = a_toy()
    loop = a_loop(tmp_path, toy)
    for _ in range(6):
        loop.advance()
    loop.save()
    saved, before = moved(toy), sorted(path.name for path in tmp_path.iterdir())
    loop.advance()
    with (
        file_size_limit(500),
        pytest.raises(KeditError, match=r"last\.safetensors could not be written \(File too large\)"),
    ):
        loop.save()
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    fresh = a_toy()
    again = a_loop(tmp_path, fresh)
    again.resume()
    assert equal(moved(fresh), saved)
    with file_size_limit(500), pytest.raises(KeditError, match=r"best-6\.safetensors could not be written"):
        again.validate()
    with file_size_limit(0), pytest.raises(KeditError, match=r"measurements in .* could not be written"):
        again.validate()


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, as if the disk were full."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_is_the_file_that_was_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that a library put in its place, which a power cut could take, and only its owner could read."""
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (synced.append(os.fstat(number).st_ino), fsync(number))[1])
    loop = a_loop(tmp_path, a_toy())
    loop.advance()
    loop.validate()
    loop.save()
    (tmp_path / "usual").touch()
    for name in ("last.safetensors", "best-1.safetensors"):
        told = (tmp_path / name).stat()
        assert told.st_ino in synced and told.st_mode == (tmp_path / "usual").stat().st_mode


def test_checkpoints_hold_tensors_of_any_kind(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.begin(anew=True)
    tensors = {
        "b": torch.tensor([True, False, True]), "empty": torch.zeros(0, 3), "one": torch.tensor(3.5),
        "half": torch.randn(5).bfloat16(), "wide": torch.randn(2, 3).double(), "n": torch.arange(7),
        "across": torch.randn(4, 3).T,
    }  # fmt: skip
    store.save_last(tensors, {"best": None, "text": "Zoë", "none": math.nan})
    found, state = store.last()
    assert found.keys() == tensors.keys() and state["text"] == "Zoë" and math.isnan(state["none"])
    assert all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in tensors.items()
    )


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
    for _ in range(3):
        (folder / "started").unlink(missing_ok=True)
        process = WarmProcess(KILLED, [folder], environment)
        while not (folder / "started").exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(draw.uniform(0.1, 0.6))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        began.append(int((folder / "started").read_text() or 0))
    assert not (folder / "done").exists()
    last = WarmProcess(KILLED, [folder], environment)
    assert last.wait(300) == 0, last.communicate()
    assert began[0] == 0 and 0 < began[1] < began[2] < 600
    final = a_toy(iterations=600)
    loop = a_loop(folder, final)
    loop.resume()
    assert loop.counters.iteration == 600
    loop._put_best()
    assert equal(moved(final), moved(whole))
    assert loop.counters.history == list(outcome.history)
