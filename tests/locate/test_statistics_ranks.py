"""Several processes at one pass give what one gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gloo_tools import run_ranks

from kedit_core.forward import ForwardTools, TokenBoundary
from kedit_core.models import AdapterRegistry
from kedit_core.models.builtin import plugin
from kedit_core.testing.tiny import tiny
from kedit_methods_locate.stats import IdRows, collect, load_statistics
from kedit_methods_locate.stats import ranks as ranks_module
from kedit_methods_locate.stats.collect import Sums
from kedit_methods_locate.stats.ranks import Ranks, own_device, processes

ROWS = [[(3 * i + j) % 90 + 5 for j in range(4 + i % 9)] for i in range(1500)]

WORKER = """
import sys
import torch, torch.distributed as dist
from locate.test_statistics_ranks import collected
from kedit_methods_locate.stats.ranks import processes
torch.set_num_threads(1)
with processes() as ranks:
    assert ranks.count == 2
    for limit in (None, 6000):
        sums = collected(limit, ranks)
        torch.save((sums.totals, sums.count, sums.documents), f"{sys.argv[1]}/{ranks.rank}-{limit}.pt")
assert not dist.is_initialized()
"""


def collected(limit: int | None, ranks: Ranks | None = None) -> Sums:
    """Sums of two layers of a tiny model."""
    model, tokenizer = tiny("llama")
    view = AdapterRegistry(plugin.register_adapters()).for_model(model)
    tools = ForwardTools(model, view, TokenBoundary(tokenizer))
    return collect(tools, [0, 1], IdRows(ROWS), max_tokens=limit, ranks=ranks)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    run_ranks(WORKER, [tmp_path])
    for limit in (None, 6000):
        alone = collected(limit)
        for rank in range(2):
            totals, count, documents = torch.load(tmp_path / f"{rank}-{limit}.pt")
            assert (count, documents) == (alone.count, alone.documents)
            for layer in (0, 1):
                torch.testing.assert_close(totals[layer], alone.totals[layer], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_the_command_under_a_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("".join(f"The river {i} runs to the sea.\n" for i in range(700)))
    words = ["stats", "factworld:llama", "--layers", "0", "--corpus", text, "-o", tmp_path / "two.safetensors"]
    run_ranks("from kedit_core.cli import main; main()", words)
    (found,) = load_statistics(tmp_path / "two.safetensors")
    assert found.record["documents_read"] == 700
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "other"))
    from click.testing import CliRunner

    from kedit_methods_locate.commands.stats import stats

    arguments = ["factworld:llama", "--layers", "0", "--corpus", str(text), "-o", str(tmp_path / "one.safetensors")]
    done = CliRunner().invoke(stats, arguments)
    assert done.exit_code == 0, done.output
    (alone,) = load_statistics(tmp_path / "one.safetensors")
    assert alone.count == found.count
    torch.testing.assert_close(found.sum, alone.sum, rtol=1e-5, atol=1e-4)


def test_one_process_is_its_own_company() -> None:
    ranks = Ranks.now()
    assert (ranks.rank, ranks.count, ranks.first, ranks.suffix) == (0, 1, True, "")
    total = torch.ones(2)
    ranks.add_up([total])
    ranks.wait()
    assert total.tolist() == [1, 1]
    assert Ranks(1, 3).mine(4)
    assert not Ranks(1, 3).mine(3)


# ------------------------------------------------------------------ on GPUs, which a test machine has none of
class Moving:
    """A number with a device, as far as sums among processes are concerned."""

    def __init__(self, value: float, device: str) -> None:
        self.value, self.device = value, torch.device(device)

    def to(self, device: torch.device) -> Moving:
        return self if device == self.device else Moving(self.value, str(device))

    def copy_(self, other: Moving) -> None:
        self.value = other.value


class Group:
    """torch.distributed of two processes whose numbers are equal."""

    def __init__(self, backends: str | None) -> None:
        self.backends, self.ended = backends, 0
        self.begun: list[str] = []
        self.met: list[str] = []
        self.waited: list[list[int] | None] = []

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return self.backends is not None

    def init_process_group(self, backend: str) -> None:
        self.begun.append(backend)
        self.backends = f"cpu:{backend}"

    def destroy_process_group(self) -> None:
        self.ended += 1
        self.backends = None

    def get_rank(self) -> int:
        return 1

    def get_world_size(self) -> int:
        return 2

    def get_backend_config(self) -> str:
        assert self.backends is not None
        return self.backends

    def all_reduce(self, number: Moving) -> None:
        self.met.append(str(number.device))
        number.value *= 2

    def barrier(self, device_ids: list[int] | None = None) -> None:
        self.waited.append(device_ids)


def on_gpus(monkeypatch: pytest.MonkeyPatch, backends: str | None, local: str | None, current: int = 0) -> Group:
    """A machine of four GPUs, on which this is one of two processes."""
    group = Group(backends)
    monkeypatch.setattr(ranks_module, "dist", group)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_RANK", local)
    return group


def test_what_is_set_up_on_gpus_meets_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL takes no sums on the CPU, and no two processes on one GPU."""
    group = on_gpus(monkeypatch, None, "1")
    with processes() as ranks:
        assert (ranks.rank, ranks.count, own_device()) == (1, 2, "cuda:1")
        numbers = [Moving(3, "cpu"), Moving(5, "cuda:1")]
        ranks.add_up(numbers)  # type: ignore[arg-type]
        ranks.wait()
    assert (group.begun, group.ended) == (["gloo"], 1)
    assert [(number.value, str(number.device)) for number in numbers] == [(6, "cpu"), (10, "cuda:1")]
    assert (group.met, group.waited) == (["cpu", "cpu"], [None])


@pytest.mark.parametrize(("backends", "local", "current", "where"), [
    ("cuda:nccl", "1", 0, "cuda:1"),  # a launcher, and nobody called set_device
    ("cuda:nccl", "6", 0, "cuda:2"),  # more processes than GPUs are seen
    ("cuda:nccl", None, 3, "cuda:3"),  # processes started by hand
    ("cpu:gloo,cuda:nccl", "1", 0, "cpu"),  # as init_process_group() without a backend
])  # fmt: skip
def test_a_group_that_the_user_has_set_up(
    backends: str, local: str | None, current: int, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = on_gpus(monkeypatch, backends, local, current)
    numbers = [Moving(3, "cpu"), Moving(5, "cuda:1")]
    with processes() as ranks:
        ranks.add_up(numbers)  # type: ignore[arg-type]
        ranks.wait()
    assert (group.begun, group.ended) == ([], 0), "used as it is, and left"
    assert [(number.value, str(number.device)) for number in numbers] == [(6, "cpu"), (10, "cuda:1")]
    assert group.met == [where, where]
    assert group.waited == [None if where == "cpu" else [int(where[-1])]]
