"""MEMIT on many facts: all together with every speed-up, against one value search after another without any.

A GPT-2 of random weights (12 layers, width 768), five edited layers, 100 made-up facts in six contexts, 20 steps each.
`plain` searches one target after another and runs the whole model forward and back in every step, as published code
does; `fast` searches them together and runs what the vectors change. The rest (keys, solves) is the same code. Both
make one patch of the same facts, and the patches are compared. `--all` also takes each speed-up alone.

    python benchmarks/memit_batch.py [--facts 100] [--steps 20] [--repeat 1] [--all] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gpt2_shape import Shape, facts, memit, statistics_file
from torch import Tensor

from kedit_core import Editor
from kedit_core.patches import EditPatch, LowRankDelta

WANTED = 6.0
# name -> (fast paths, all targets together)
WAYS = {
    "plain, one by one": (False, False),
    "plain, together": (False, True),
    "fast, one by one": (True, False),
    "fast, together": (True, True),
}
EXTREMES = ("plain, one by one", "fast, together")


def editor_of(way: str, model: Any, shape: Shape, stats: Path, steps: int) -> Editor:
    """An Editor that works in the given way, warm: statistics read and factorised, fast paths compared once."""
    fast, together = WAYS[way]
    editor = memit(model, shape, stats, fast=fast, steps=steps)
    editor.compute(facts(1))
    if not together:
        editor.memory_budget = 1  # of a value search's group; keys and states are read together in any case
    return editor


def deltas(patch: EditPatch) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight -> factors of its update."""
    low_rank = [each for each in patch.operations if isinstance(each, LowRankDelta)]
    return {each.place: (each.left.double(), each.right.double()) for each in low_rank}


def difference(one: EditPatch, other: EditPatch) -> float:
    """Largest relative Frobenius distance of two patches' updates, over the weights."""
    found = []
    for place, (left, right) in deltas(one).items():
        left_2, right_2 = deltas(other)[place]
        # of the difference, as one product of thin factors
        apart = _norm(torch.cat([left, -left_2], 1), torch.cat([right, right_2], 0))
        found.append(apart / _norm(left, right))
    return max(found)


def _norm(left: Tensor, right: Tensor) -> float:
    return float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0).sqrt())


def measure(shape: Shape, count: int, steps: int, repeat: int, names: tuple[str, ...], tokens: int) -> dict[str, Any]:
    """Seconds of each way, in turns in one process, and how equal the patches are."""
    model = shape.model()
    requests = facts(count)
    with tempfile.TemporaryDirectory() as folder:
        stats = statistics_file(model, shape.edited, tokens, Path(folder) / "stats.safetensors")
        editors = {name: editor_of(name, model, shape, stats, steps) for name in names}
        times: dict[str, list[float]] = {name: [] for name in names}
        patches: dict[str, EditPatch] = {}
        for _ in range(repeat):
            for name, editor in editors.items():
                started = time.perf_counter()
                patches[name] = editor.compute(requests)
                times[name].append(time.perf_counter() - started)
    fast = names[-1]
    return {
        "facts": count,
        "steps": steps,
        "layers": list(shape.edited),
        "threads": torch.get_num_threads(),
        "wanted": WANTED,
        "ways": {
            name: {
                "seconds": min(each),
                "ratio": min(each) / min(times[fast]),
                "difference": difference(patches[fast], patches[name]),
            }
            for name, each in times.items()
        },
    }


def show(found: Mapping[str, Any]) -> None:
    """Print the table."""
    print(f"{found['facts']} facts, {found['steps']} steps, {found['threads']} threads; wanted {found['wanted']:.1f}x")
    print(f"{'way':<20}{'seconds':>9}{'ratio':>8}{'difference':>13}")
    for name, way in found["ways"].items():
        print(f"{name:<20}{way['seconds']:9.2f}{way['ratio']:7.2f}x{way['difference']:13.1e}")


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20, help="forward passes of a search")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=6000, help="of the random text that statistics stand on")
    parser.add_argument("--all", action="store_true", help="each speed-up alone, too")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    names = tuple(WAYS) if options.all else EXTREMES
    found = measure(Shape(), options.facts, options.steps, options.repeat, names, options.tokens)
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
