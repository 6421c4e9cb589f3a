"""MEMIT on one fact after another: an amortised solve against factorising everything again for every edit.

A GPT-2 of random weights (12 layers, width 768), five edited layers; a hundred facts, one a round, each preserving the
keys of those before. kedit keeps one factor of the statistic and grows what the earlier keys add to it. The comparison
solves the very same equations as published code does, by a general solve of the whole `[in, in]` matrix, and by a
Cholesky factor of it, for an evenly spread sample of the edits (each costs the same), and is scaled to all. Solutions
are compared. Reported: the linear algebra apart, and as a share of the whole run.

    python benchmarks/sequential_memit.py [--facts 100] [--steps 20] [--sample 10] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from attrs import frozen
from clock import Clock
from gpt2_shape import Shape, facts, memit, statistics_file
from torch import Tensor

from kedit_core.editing import EditContext
from kedit_methods_locate import reading, solvers, spread_method, spreading
from kedit_methods_locate.factors import Solution
from kedit_methods_locate.ridge import Preserved, ridge_update


@frozen(eq=False)
class Solved:
    """One layer's equations in one edit, and what was found."""

    preserved: Preserved
    keys: Tensor
    right: Tensor


class Recorder:
    """Stands in for the solve: keeps the equations of some edits, and the seconds of all."""

    def __init__(self, layers: int, kept: Sequence[int]) -> None:
        self.layers, self.kept = layers, set(kept)
        self.calls = 0
        self.solved: list[Solved] = []

    def __call__(self, preserved: Preserved, keys: Tensor) -> Solution:
        found = ridge_update(preserved, keys)
        if self.calls // self.layers in self.kept:
            self.solved.append(Solved(preserved, keys, found.right))
        self.calls += 1
        return found


def by_lu(matrix: Tensor, keys: Tensor) -> Tensor:
    """As published code solves it."""
    found: Tensor = torch.linalg.solve(matrix, keys)
    return found


def by_cholesky(matrix: Tensor, keys: Tensor) -> Tensor:
    """The best that factorising anew can do."""
    return torch.cholesky_solve(keys, torch.linalg.cholesky(matrix))


def anew(solved: Sequence[Solved], solve: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
    """Mean seconds of a solve from nothing but the matrix and the keys; largest relative difference of its result."""
    seconds, apart = 0.0, 0.0
    for each in solved:
        before = each.preserved.dense()  # published code has the sum of the statistic and the earlier keys at hand
        keys = each.keys.double()
        started = time.perf_counter()
        found = solve(before + keys @ keys.T, keys)
        seconds += time.perf_counter() - started
        apart = max(apart, float((found - each.right).norm() / each.right.norm()))
    return seconds / len(solved), apart


def measure(shape: Shape, count: int, steps: int, sample: int, tokens: int) -> dict[str, Any]:
    """Seconds of a sequence and of its linear algebra, amortised and anew."""
    model = shape.model()
    kept = sorted({round(i * (count - 1) / max(sample - 1, 1)) for i in range(min(sample, count))})
    recorder, clock = Recorder(len(shape.edited), kept), Clock()
    with tempfile.TemporaryDirectory() as folder:
        stats = statistics_file(model, shape.edited, tokens, Path(folder) / "stats.safetensors")
        editor = memit(model, shape, stats, steps=steps)
        editor.compute(facts(1))
        watched = [
            (solvers.StatisticSolver, "__call__", "linear algebra"),
            (spread_method, "search", "value search"),
            (spreading, "Reader", "keys and states"),
            *((reading.Reader, name, "keys and states") for name in ("read", "advance", "keys_now")),
            (EditContext, "new_patch", "patch"),
        ]
        with patch.object(solvers, "ridge_update", recorder), clock.watching(watched), clock.part("rest"):
            editor.edit(facts(count), scenario="sequential", evaluate=False)
        editor.restore()
    whole, amortised = sum(clock.seconds.values()), clock.seconds["linear algebra"]
    solves = count * len(shape.edited)
    ways = {"amortised": {"seconds": amortised, "share": amortised / whole, "ratio": 1.0, "difference": 0.0}}
    for name, solve in {"anew, Cholesky": by_cholesky, "anew, general solve": by_lu}.items():
        each, apart = anew(recorder.solved, solve)
        seconds = each * solves
        ways[name] = {
            "seconds": seconds,
            "share": seconds / (whole - amortised + seconds),
            "ratio": seconds / amortised,
            "difference": apart,
        }
    return {
        "facts": count,
        "steps": steps,
        "sampled_edits": len(kept),
        "threads": torch.get_num_threads(),
        "seconds": whole,
        "parts": dict(sorted(clock.seconds.items(), key=lambda part: -part[1])),
        "linear_algebra": ways,
    }


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20, help="forward passes of a search")
    parser.add_argument("--sample", type=int, default=10, help="edits that are solved anew")
    parser.add_argument("--tokens", type=int, default=6000, help="of the random text that statistics stand on")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    found = measure(Shape(), options.facts, options.steps, options.sample, options.tokens)
    print(f"{found['facts']} facts one after another, {found['threads']} threads: {found['seconds']:.2f} s")
    for label, seconds in found["parts"].items():
        print(f"  {label:<20}{seconds:9.2f} s{seconds / found['seconds']:8.1%}")
    print(f"{'linear algebra':<22}{'seconds':>9}{'ratio':>8}{'of the whole':>14}{'difference':>13}")
    for name, way in found["linear_algebra"].items():
        print(f"{name:<22}{way['seconds']:9.2f}{way['ratio']:7.1f}x{way['share']:14.1%}{way['difference']:13.1e}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
