"""Two processes train as one would: on the CPU, over gloo."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from core.training.toy_trainer import Toy, a_loop, a_toy, equal, moved
from gloo_tools import run_ranks
from safetensors.torch import load_file
from torch import Tensor

from kedit_core.errors import MissingExtraError
from kedit_core.training.processes import Processes
from kedit_core.training.several import processes_here

RANKS = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from core.training import test_processes
from kedit_core.training.several import processes_here

processes = processes_here()
folder = Path(sys.argv[1])
told = test_processes.together(processes, folder)
(folder / f"told-{processes.rank}.json").write_text(json.dumps(told))
processes.close()
"""


def named(toy: Toy) -> dict[str, Tensor]:
    return {f"{index}": tensor for index, tensor in enumerate(moved(toy))}


def together(processes: Processes, folder: Path) -> dict[str, Any]:
    """What each of two processes does."""
    from safetensors.torch import save_file

    told: dict[str, Any] = {}
    rank = processes.rank
    # 20 steps of 2 x 3 micro-batches
    toy = a_toy(processes, iterations=60, accumulate=3, normalises=False)
    told["history"] = list(a_loop(folder / "same", toy).run().history)
    save_file(named(toy), folder / f"same-{rank}.safetensors")
    # the same with a loss in which the statistics count
    toy = a_toy(processes, iterations=60)
    told["whole"] = list(a_loop(folder / "whole", toy).run().history)
    save_file(named(toy), folder / f"whole-{rank}.safetensors")
    # only the second process meets something that is not a number
    toy = a_toy(processes, poison=(2,) if rank == 1 else (), iterations=3)
    loop = a_loop(folder / "bad", toy)
    before = {}
    for number in range(3):
        loop.advance()
        before[number] = float(toy.statistics["count"])
    told["skipped"], told["counts"] = loop.counters.skipped, before
    save_file(named(toy), folder / f"bad-{rank}.safetensors")
    # interrupted in the middle of an accumulation
    loop = a_loop(folder / "two", a_toy(processes, iterations=60))
    for _ in range(17):
        loop.advance()
        if loop.counters.iteration == 10:
            loop.validate()
    loop.save()
    toy = a_toy(processes, iterations=60)
    loop = a_loop(folder / "two", toy)
    loop.resume()
    told["resumed"] = list(loop.run().history) == told["whole"]
    save_file(named(toy), folder / f"two-{rank}.safetensors")
    rows = torch.arange(6.0).reshape(3, 2)[: 3 - 2 * rank] + 10 * rank
    told["gathered"] = [part.tolist() for part in processes.gather(rows)]
    told["nobody"] = [len(part) for part in processes.gather(torch.zeros(0, 4))]
    told["any"] = [processes.any(rank == 1), processes.any(False)]
    told["told"] = processes.told(f"from {rank}")
    # other parameters on one of them
    toy = a_toy(processes)
    with torch.no_grad():
        toy.held["at"] += rank
    try:
        a_loop(folder / "unlike", toy).run()
    except Exception as error:
        told["unlike"] = str(error)
    # one of them ends before the other
    if rank == 0:
        try:
            processes.collect(rank)
        except Exception as error:
            told["alone"] = f"{type(error).__name__}: {error}"
    return told


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have done :func:`together`."""
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("pair")
    run_ranks(RANKS, [folder])
    return folder


def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
def test_5_two_processes_equal_one_with_the_same_global_batch(pair: Path, tmp_path: Path) -> None:
    """Acceptance check 5: parameters and statistics within 1e-5 after 20 steps, and identical on both processes."""
    one = a_toy(iterations=120, accumulate=6, val_interval=20, normalises=False)
    outcome = a_loop(tmp_path, one).run()
    assert outcome.updates == 20
    ranks = [load_file(pair / f"same-{rank}.safetensors") for rank in (0, 1)]
    for name, tensor in named(one).items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], tensor, atol=1e-5, rtol=0)
    assert not torch.equal(ranks[0]["0"], torch.zeros(3))
    first, second = (each["history"] for each in told(pair))
    assert first == second
    assert [2 * each["iteration"] for each in first] == [each["iteration"] for each in outcome.history]
    for mine, alone in zip(first, outcome.history, strict=True):
        assert mine["loss/total"] == pytest.approx(alone["loss/total"], abs=1e-5)


@pytest.mark.slow
def test_5_statistics_that_count_are_the_same_on_both(pair: Path) -> None:
    """A forward pass sees the rows of both processes, so it is that of no single process; but it is the same."""
    ranks = [load_file(pair / f"whole-{rank}.safetensors") for rank in (0, 1)]
    assert equal(list(ranks[0].values()), list(ranks[1].values()))
    alone = load_file(pair / "same-0.safetensors")
    assert not torch.equal(ranks[0]["0"], alone["0"])
    for index in ("3", "4", "5"):  # count, mean, m2: of the same rows
        assert torch.equal(ranks[0][index], alone[index])


@pytest.mark.slow
def test_7_what_is_not_a_number_on_one_is_left_out_on_both(pair: Path) -> None:
    """Acceptance check 7: also of the statistics."""
    ranks = [load_file(pair / f"bad-{rank}.safetensors") for rank in (0, 1)]
    assert [each["skipped"] for each in told(pair)] == [1, 1]
    assert all(each["counts"] == {"0": 8.0, "1": 8.0, "2": 16.0} for each in told(pair))
    assert equal(list(ranks[0].values()), list(ranks[1].values()))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in ranks[0].values())


@pytest.mark.slow
def test_6_two_processes_resume_bit_for_bit(pair: Path) -> None:
    for rank in (0, 1):
        whole, again = (load_file(pair / f"{name}-{rank}.safetensors") for name in ("whole", "two"))
        assert equal(list(whole.values()), list(again.values()))
    assert all(each["resumed"] for each in told(pair))


@pytest.mark.slow
def test_what_processes_exchange(pair: Path) -> None:
    for each in told(pair):
        assert each["gathered"] == [[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], [[10.0, 11.0]]]
        assert each["nobody"] == [0, 0]
        assert each["any"] == [True, False]
        assert each["told"] == "from 0"
        assert "context.seed" in each["unlike"]


@pytest.mark.slow
def test_a_process_that_is_left_alone_ends_with_a_sentence(pair: Path) -> None:
    assert told(pair)[0]["alone"].startswith("KeditError: another process of this training has ended")


@pytest.mark.slow
def test_only_the_first_writes(pair: Path) -> None:
    lines = (pair / "same" / "metrics.jsonl").read_text().splitlines()
    iterations = [json.loads(line)["iteration"] for line in lines if '"validation"' in line]
    assert iterations == [10, 20, 30, 40, 50, 60]


def test_one_process_needs_no_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = processes_here()
    tensor = torch.ones(2)
    assert alone.gather(tensor)[0] is tensor and alone.mean(tensor) is tensor and alone.device() is None
    assert alone.collect(1) == [1] and alone.told("x") == "x" and alone.any(True) and not alone.any(False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MissingExtraError, match=r"kedit-core\[train\]"):
        processes_here()
