"""How long a step of a training takes on this machine, for plans."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import torch

TRIED = 3  # steps, of which the first one warms up


def seconds_of(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of one step: the shortest of those tried, after one that warms up; an accelerator is waited for."""
    marks = []
    for _ in range(TRIED):
        step()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        marks.append(time.perf_counter())
    return min(later - sooner for sooner, later in pairwise(marks))
