"""Where the time of a MEMIT batch goes, and how far that is from the forward and backward passes that it needs.

A batch is run with clocks around its parts; times are exclusive, so they add up to the whole. Then the value search's
passes are run bare: the blocks behind the last edited layer and the head written down in a few lines of torch, on
tensors of the very same shapes, forward and back, without hooks, masks made anew, losses or an optimiser.

    python benchmarks/memit_profile.py [--facts 100] [--steps 20] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from attrs import frozen
from clock import Clock
from gpt2_shape import Shape, facts, memit, statistics_file
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from kedit_core.editing import EditContext
from kedit_core.forward import Tail
from kedit_methods_locate import reading, solvers, spread_method, spreading, value
from kedit_methods_locate.problem import Problem

SEARCH = ("search: set-up", "search: forward", "search: loss", "search: backward", "search: rest")


@frozen
class Pass:
    """Shape of a pass behind the written block.

    Attributes:
        rows, columns: of the residual stream; ``prefix`` columns before have their keys and values kept.
        blocks: how many are run, up to the last.
        cells: where the head is read.
        grad: whether a backward pass follows.
        needed: how many of the rows' cells a vector can reach and something is read behind.
    """

    rows: int
    columns: int
    prefix: int
    blocks: int
    cells: int
    grad: bool
    needed: int


def pass_of(tail: Any, grad: bool) -> Pass:
    """The shape of one call of a fast tail."""
    plan = tail.plan
    last = torch.zeros(plan.batch.rows, dtype=torch.long).scatter_reduce(
        0, plan.logits_at[:, 0], plan.logits_at[:, 1], "amax", include_self=False
    )
    rows, columns = tail.hidden.shape[:2]
    return Pass(
        rows=rows,
        columns=columns,
        prefix=tail.first,
        blocks=tail.view.num_layers - tail.first_block,
        cells=len(tail.cells),
        grad=grad,
        needed=int((last - plan.positions + 1).sum()),
    )


@contextmanager
def watched(clock: Clock, passes: Counter[Pass]) -> Iterator[None]:
    """Clocks around the parts of a MEMIT edit, and the shapes of its value search's passes counted."""
    logits = clock.around("search: forward", Tail.logits)

    def counted(tail: Tail, *args: Any, **kwargs: Any) -> Tensor:
        if tail.fast:
            passes[pass_of(tail, torch.is_grad_enabled())] += 1
        found: Tensor = logits(tail, *args, **kwargs)
        return found

    parts: list[tuple[Any, str, str]] = [
        (spread_method, "search", "search: rest"),
        (value, "Problem", "search: set-up"),
        (Problem, "losses", "search: loss"),
        (torch.autograd, "grad", "search: backward"),
        (spreading, "Reader", "keys and states"),
        *((reading.Reader, name, "keys and states") for name in ("read", "advance", "keys_now")),
        (solvers, "statistics_for", "statistics"),
        (solvers.StatisticSolver, "__call__", "solve"),
        (EditContext, "new_patch", "patch"),
    ]
    with patch.object(Tail, "logits", counted), clock.watching(parts):
        yield


def bare_logits(model: Any, hidden: Tensor, kept: Sequence[tuple[Tensor, Tensor]], cells: Tensor) -> Tensor:
    """The last blocks of a GPT-2 and its head, written down: ``[cells, vocabulary]``.

    Args:
        hidden: ``[rows, columns, hidden]`` the residual stream.
        kept: of each block that is run, keys and values ``[rows, heads, prefix, head]`` of the columns before.
        cells: where the head is read, in the flattened rows and columns.
    """
    width, heads = model.config.n_embd, model.config.n_head
    columns, prefix = hidden.shape[1], kept[0][0].shape[2] if kept else 0
    seen = torch.ones(columns, prefix + columns, dtype=torch.bool).tril(prefix)

    def split(x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)

    def normed(x: Tensor, norm: Any) -> Tensor:
        return layer_norm(x, (width,), norm.weight, norm.bias, norm.eps)

    def projected(x: Tensor, conv: Any) -> Tensor:
        flat: Tensor = torch.addmm(conv.bias, x.reshape(-1, x.shape[-1]), conv.weight)
        return flat.view(*x.shape[:-1], -1)

    blocks = list(model.transformer.h)
    for block, (keys, values) in zip(blocks[len(blocks) - len(kept) :], kept, strict=True):
        query, key, value = projected(normed(hidden, block.ln_1), block.attn.c_attn).chunk(3, -1)
        keys, values = torch.cat([keys, split(key)], 2), torch.cat([values, split(value)], 2)
        attended = scaled_dot_product_attention(split(query), keys, values, attn_mask=seen)
        hidden = hidden + projected(attended.transpose(1, 2).flatten(2), block.attn.c_proj)
        inner = gelu(projected(normed(hidden, block.ln_2), block.mlp.c_fc), approximate="tanh")
        hidden = hidden + projected(inner, block.mlp.c_proj)
    return linear(normed(hidden.flatten(0, 1)[cells], model.transformer.ln_f), model.lm_head.weight)


def bare(model: Any, shape: Pass) -> Callable[[], None]:
    """A pass of this shape on random numbers, as a function to be timed."""
    width, heads = model.config.n_embd, model.config.n_head
    generator = torch.Generator().manual_seed(0)

    def random(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    base, of_head = random(shape.rows, shape.columns, width), (shape.rows, heads, shape.prefix, width // heads)
    kept = [(random(*of_head), random(*of_head)) for _ in range(shape.blocks)]
    cells = torch.randint(shape.rows * shape.columns, (shape.cells,), generator=generator)
    given = random(shape.cells, model.config.vocab_size) if shape.grad else None

    def run() -> None:
        with torch.set_grad_enabled(shape.grad):
            vector = torch.zeros(shape.rows, width, requires_grad=shape.grad)
            hidden = torch.cat([base[:, :1] + vector[:, None], base[:, 1:]], 1)
            logits = bare_logits(model, hidden, kept, cells)
        if given is not None:
            torch.autograd.grad(logits, vector, given)

    return run


def bare_seconds(model: Any, passes: Mapping[Pass, int], repeat: int = 3) -> float:
    """Seconds of all the passes run bare: of each shape the best of a few, times how often it came."""
    whole = 0.0
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    try:
        for shape, count in passes.items():
            run, times = bare(model, shape), []
            for _ in range(min(repeat, count) + 1):
                started = time.perf_counter()
                run()
                times.append(time.perf_counter() - started)
            whole += count * min(times[1:])
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
    return whole


def profile(shape: Shape, count: int, steps: int, tokens: int) -> dict[str, Any]:
    """Seconds of each part of one warm batch, and of the passes alone."""
    model = shape.model()
    clock, passes = Clock(), Counter[Pass]()
    with tempfile.TemporaryDirectory() as folder:
        stats = statistics_file(model, shape.edited, tokens, Path(folder) / "stats.safetensors")
        editor = memit(model, shape, stats, steps=steps)
        editor.compute(facts(1))
        with watched(clock, passes), clock.part("rest"):
            editor.compute(facts(count))
    whole = sum(clock.seconds.values())
    needed = bare_seconds(model, passes)
    search = sum(clock.seconds[label] for label in SEARCH)
    computed = sum(shape.rows * shape.columns * times for shape, times in passes.items())
    return {
        "facts": count,
        "steps": steps,
        "threads": torch.get_num_threads(),
        "seconds": whole,
        "parts": dict(sorted(clock.seconds.items(), key=lambda part: -part[1])),
        "passes": sum(passes.values()),
        "bare_seconds": needed,
        "search_over_bare": search / needed,
        "whole_over_bare": whole / needed,
        "needed_cells": sum(shape.needed * times for shape, times in passes.items()) / computed,
    }


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20, help="forward passes of a search")
    parser.add_argument("--tokens", type=int, default=6000, help="of the random text that statistics stand on")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    found = profile(Shape(), options.facts, options.steps, options.tokens)
    print(f"{found['facts']} facts, {found['steps']} steps, {found['threads']} threads: {found['seconds']:.2f} s")
    for label, seconds in found["parts"].items():
        print(f"  {label:<20}{seconds:9.2f} s{seconds / found['seconds']:8.1%}")
    print(f"the {found['passes']} passes of the search, bare: {found['bare_seconds']:.2f} s")
    print(
        f"the search takes {found['search_over_bare']:.2f} times that, the whole {found['whole_over_bare']:.2f} times"
    )
    print(f"of the cells computed in the passes {found['needed_cells']:.1%} are needed; the rest is padding")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
