"""What an edit costs: a wrapper around ``compute_patch`` measures every round, ``evaluate`` reports it per fact."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import TYPE_CHECKING

from attrs import define, frozen

from kedit_core.contract import MetricInfo, MetricResult, hookimpl
from kedit_core.evaluation.aggregate import metric_result
from kedit_core.evaluation.metrics import case_of, way_of
from kedit_core.evaluation.tags import Tag
from kedit_core.requests import EditRequest

if TYPE_CHECKING:
    import torch
    from torch import nn

    from kedit_core.editing import EditContext
    from kedit_core.patches import EditPatch

SAMPLING_SECONDS = 0.005
_SUMMARIES: Mapping[str, str] = {
    "seconds": "wall time of computing the patch, per edited fact",
    "setup_seconds": "one-time work during the edit, per edited fact",
    "peak_memory": "peak memory over the start while computing the patch",
    "patch_size": "bytes of the patch, per edited fact",
}


@define
class Peak:
    """The highest memory use of a block over what was in use when it began, in bytes."""

    bytes: int = 0


@contextmanager
def resident_peak(interval: float = SAMPLING_SECONDS) -> Iterator[Peak]:
    """Peak resident memory of this process over the start, sampled every ``interval`` seconds in a thread.

    Memory that was freed before but is still held by the allocator is reused without showing, so a first edit looks
    dearer than the next.
    """
    import psutil

    process = psutil.Process()
    peak, start, done = Peak(), process.memory_info().rss, threading.Event()

    def sample() -> None:
        peak.bytes = max(peak.bytes, process.memory_info().rss - start)

    def watch() -> None:
        while not done.wait(interval):
            sample()

    thread = threading.Thread(target=watch, name="kedit-memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        sample()


@contextmanager
def allocated_peak(devices: Sequence[torch.device]) -> Iterator[Peak]:
    """Peak memory given out by the CUDA allocator over the start, summed over devices; resets its peak counters."""
    import torch

    start = sum(torch.cuda.memory_allocated(device) for device in devices)
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
    peak = Peak()
    try:
        yield peak
    finally:
        peak.bytes = max(0, sum(torch.cuda.max_memory_allocated(device) for device in devices) - start)


def devices_of(model: nn.Module) -> list[torch.device]:
    """The devices that a model's parameters are on, without ``meta``."""
    found = {parameter.device for parameter in model.parameters()}
    return sorted((device for device in found if device.type != "meta"), key=str)


def synchronise(devices: Sequence[torch.device]) -> None:
    """Wait until the accelerators among the devices have done what they were given."""
    import torch

    for device in devices:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)


@define
class Measured:
    """Wall seconds and memory of one block."""

    peak: Peak
    seconds: float = 0.0


@contextmanager
def measured(model: nn.Module, interval: float = SAMPLING_SECONDS) -> Iterator[Measured]:
    """Measure a block that works on a model: its devices are synchronised before and after the clock is read."""
    devices = devices_of(model)
    cuda = [device for device in devices if device.type == "cuda"]
    with allocated_peak(cuda) if cuda else resident_peak(interval) as peak:
        found = Measured(peak=peak)
        synchronise(devices)
        start = time.perf_counter()
        try:
            yield found
        finally:
            synchronise(devices)
            found.seconds = time.perf_counter() - start


@frozen(kw_only=True)
class Cost:
    """What one round cost, shared out over its requests where that makes sense (seconds, patch bytes)."""

    seconds: float
    setup_seconds: float
    peak_bytes: float
    patch_bytes: float


@define
class EfficiencyMetrics:
    """The plugin. It appends ``edit_seconds``, ``edit_setup_seconds``, ``edit_requests`` and ``edit_peak_bytes`` to
    ``context.records``, one number a round; the Editor appends ``patch_bytes`` when it puts the patch on the model.

    A method that does one-time work inside a round (collects statistics, ...) appends its seconds to
    ``context.records["setup_seconds"]``; they are then taken out of the edit's time and reported apart.
    """

    interval: float = SAMPLING_SECONDS

    @hookimpl
    def register_metrics(self) -> Sequence[MetricInfo]:
        return [
            MetricInfo(name=f"efficiency.{name}", summary=text, better="lower") for name, text in _SUMMARIES.items()
        ]

    @hookimpl(wrapper=True)
    def compute_patch(
        self, context: EditContext, requests: Sequence[EditRequest]
    ) -> Generator[None, EditPatch | None, EditPatch | None]:
        setup_before = sum(context.records.get("setup_seconds", ()))
        with measured(context.model, self.interval) as found:
            patch = yield
        if patch is None:  # no method answered; the host says so
            return None
        setup = sum(context.records.get("setup_seconds", ())) - setup_before
        for name, number in {
            "edit_seconds": max(0.0, found.seconds - setup),
            "edit_setup_seconds": setup,
            "edit_requests": len(requests),
            "edit_peak_bytes": found.peak.bytes,
        }.items():
            context.records.setdefault(name, []).append(float(number))
        return patch

    @hookimpl
    def evaluate(self, context: EditContext, requests: Sequence[EditRequest]) -> Mapping[str, MetricResult]:
        costs = costs_of(context, requests)
        if costs is None:
            return {}
        return {
            f"efficiency.{name}": metric_result(
                _by_case(requests, [getattr(cost, number) for cost in costs]),
                tag=str(
                    Tag(
                        mode="efficiency",
                        context="compute_patch",
                        answer_source=how,
                        scenario=context.scenario,
                        n=len(requests),
                        way=way_of(context),
                    )
                ),
                unit=unit,
                statistics=statistics,
            )
            for name, number, how, unit, statistics in _REPORTED
            if name != "setup_seconds" or any(cost.setup_seconds for cost in costs)
        }


_REPORTED: tuple[tuple[str, str, str, str, tuple[str, ...]], ...] = (
    ("seconds", "seconds", "wall-clock", "seconds", ("median", "p95")),
    ("setup_seconds", "setup_seconds", "wall-clock", "seconds", ()),
    ("peak_memory", "peak_bytes", "peak-over-start", "bytes", ("max",)),
    ("patch_size", "patch_bytes", "file-bytes", "bytes", ("max",)),
)


def costs_of(context: EditContext, requests: Sequence[EditRequest]) -> list[Cost] | None:
    """The cost of each request, from the latest rounds of the context; None when they do not cover these requests.

    A batch's seconds and bytes are shared equally by its requests. Where a method extends one patch round after round,
    the last patch holds them all, and its size is what is shared.
    """
    names = ("edit_requests", "edit_seconds", "edit_setup_seconds", "edit_peak_bytes", "patch_bytes")
    columns = [context.records.get(name, []) for name in names]
    if len({len(column) for column in columns}) != 1:
        return None
    rounds = list(zip(*columns, strict=True))
    covered: list[Cost] = []
    extends = context.method is not None and context.method.state == "extend"
    for count, seconds, setup, peak, size in reversed(rounds):
        if len(covered) >= len(requests) or not count:
            break
        shared = rounds[-1][-1] / len(requests) if extends else size / count
        cost = Cost(seconds=seconds / count, setup_seconds=setup / count, peak_bytes=peak, patch_bytes=shared)
        covered += [cost] * int(count)
    return covered[::-1] if requests and len(covered) == len(requests) else None


def _by_case(requests: Sequence[EditRequest], numbers: Sequence[float]) -> dict[str, float]:
    by_case: dict[str, list[float]] = {}
    for request, number in zip(requests, numbers, strict=True):
        by_case.setdefault(case_of(request), []).append(number)
    return {case: fmean(of_case) for case, of_case in by_case.items()}
