from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
import torch

from kedit_core.contract import hookimpl
from kedit_core.errors import MethodError, PluginError
from kedit_core.evaluation import EfficiencyMetrics, plugin
from kedit_core.evaluation.efficiency import allocated_peak, measured, resident_peak
from kedit_core.plugins import Catalogue, Host

MIB = 2**20


class SleepyMethod:
    """Sleeps, holds memory for a while, and does some one-time work when told to."""

    def __init__(self, seconds: float = 0.03, mebibytes: int = 0, setup: float = 0.0) -> None:
        self.seconds, self.mebibytes, self.setup = seconds, mebibytes, setup

    @hookimpl
    def compute_patch(self, context, requests, hparams):
        held = torch.ones(self.mebibytes * MIB // 4)
        time.sleep(self.seconds)
        if self.setup:
            context.records.setdefault("setup_seconds", []).append(self.setup)
        return SimpleNamespace(held=held.numel())


def host(method: object) -> Host:
    return Host(Catalogue(), extra=[method, EfficiencyMetrics()])


@pytest.fixture
def context(make_context):
    return make_context(scenario="single", model=torch.nn.Linear(2, 2))


def compute(host, context, requests, patch_bytes=1000.0):
    host.compute_patch(context, requests, None)
    context.records.setdefault("patch_bytes", []).append(patch_bytes)


def test_a_round_is_measured_and_reported(context, make_request) -> None:
    compute(host(SleepyMethod(0.05)), context, [make_request()])
    results = EfficiencyMetrics().evaluate(context, [make_request()])
    assert set(results) == {"efficiency.seconds", "efficiency.peak_memory", "efficiency.patch_size"}
    seconds = results["efficiency.seconds"]
    assert 0.05 <= seconds.value < 5 and seconds.unit == "seconds"
    assert seconds.parts == {"median": seconds.value, "p95": seconds.value}
    assert seconds.tag == "efficiency.compute_patch.wall-clock.single.1+merged"
    assert results["efficiency.patch_size"].value == 1000 and results["efficiency.patch_size"].unit == "bytes"
    assert set(results) <= {info.name for info in EfficiencyMetrics().register_metrics()}


def test_a_batch_is_shared_out_and_rounds_are_told_apart(context, make_request) -> None:
    requests = [make_request(n) for n in range(3)]
    context.records |= {
        "edit_requests": [2.0, 1.0],
        "edit_seconds": [4.0, 1.0],
        "edit_setup_seconds": [0.0, 0.0],
        "edit_peak_bytes": [10.0, 30.0],
        "patch_bytes": [100.0, 60.0],
    }
    results = EfficiencyMetrics().evaluate(context, requests)
    assert results["efficiency.seconds"].cases == {"case-0": 2.0, "case-1": 2.0, "case-2": 1.0}
    assert results["efficiency.seconds"].parts["median"] == 2.0
    assert results["efficiency.peak_memory"].parts == {"max": 30.0}
    assert results["efficiency.patch_size"].cases == {"case-0": 50.0, "case-1": 50.0, "case-2": 60.0}
    # only the latest rounds speak of the latest requests; rounds that do not fit say nothing
    assert EfficiencyMetrics().evaluate(context, requests[2:])["efficiency.seconds"].cases == {"case-2": 1.0}
    assert EfficiencyMetrics().evaluate(context, requests[1:]) == {}


def test_a_method_that_extends_one_patch_has_the_last_one_shared(context, make_request) -> None:
    context.method = SimpleNamespace(state="extend")
    context.records |= {
        "edit_requests": [1.0, 1.0],
        "edit_seconds": [1.0, 1.0],
        "edit_setup_seconds": [0.0, 0.0],
        "edit_peak_bytes": [1.0, 1.0],
        "patch_bytes": [100.0, 180.0],
    }
    results = EfficiencyMetrics().evaluate(context, [make_request(1), make_request(2)])
    assert results["efficiency.patch_size"].value == 90.0


def test_nothing_was_edited_so_nothing_is_reported(context, make_request) -> None:
    assert EfficiencyMetrics().evaluate(context, [make_request()]) == {}


def test_one_time_work_is_reported_apart(context, make_request) -> None:
    compute(host(SleepyMethod(0.05, setup=0.04)), context, [make_request()])
    results = EfficiencyMetrics().evaluate(context, [make_request()])
    assert results["efficiency.setup_seconds"].value == pytest.approx(0.04)
    assert results["efficiency.seconds"].value >= 0.009


def test_peak_memory_is_seen_while_it_lasts() -> None:
    with resident_peak() as peak:
        held = torch.ones(64 * MIB // 4)
        time.sleep(0.05)
        del held
    assert 48 * MIB < peak.bytes < 1024 * MIB
    with measured(torch.nn.Linear(1, 1)) as found:
        time.sleep(0.02)
    assert 0.02 <= found.seconds < 5 and found.peak.bytes < 48 * MIB


def test_a_failing_method_leaves_no_record_and_no_thread(context, make_request) -> None:
    class Broken:
        @hookimpl
        def compute_patch(self, context, requests, hparams):
            raise ValueError("no")

    before = threading.active_count()
    with pytest.raises(PluginError, match="Broken") as caught:
        host(Broken()).compute_patch(context, [make_request()], None)
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(MethodError, match="without a method"):
        Host(Catalogue(), extra=[EfficiencyMetrics()]).compute_patch(context, [make_request()], None)
    assert context.records == {}
    assert threading.active_count() == before


def test_each_editor_gets_its_own_plugins() -> None:
    first, second = plugin(), plugin()
    assert [type(p).__name__ for p in first] == ["CoreMetrics", "EfficiencyMetrics", "LatencyMetrics"]
    assert not any(a is b for a, b in zip(first, second, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_allocators_peak_on_cuda() -> None:
    device = torch.device("cuda:0")
    model = torch.nn.Linear(2, 2).to(device)
    with allocated_peak([device]) as peak:
        held = torch.ones(64 * MIB // 4, device=device)
        del held
    assert 64 * MIB <= peak.bytes < 80 * MIB
    a = torch.randn(4096, 4096, device=device)
    with measured(model) as found:
        for _ in range(50):
            a = a @ a
    assert torch.cuda.current_stream(device).query()  # the clock was read when all was done
    assert found.seconds > 0
    assert 64 * MIB <= found.peak.bytes < 1024 * MIB
