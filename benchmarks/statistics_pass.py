"""Second-moment statistics of five layers: one pass over the corpus for all of them, against a pass for each.

A GPT-2 of random weights (12 layers, width 768), documents of random ids. Three ways, in turns in one process:

- `one pass`: kedit's. All layers read in one forward that ends with the deepest, float64 products of one triangle.
- `five passes`: a pass for each layer that ends with it (a hook that stops the model), float32 products, documents
  sorted by length within each hundred and cut into sub-batches, as published code does.
- `five full passes`: likewise, and every pass runs the whole model with its head.

    python benchmarks/statistics_pass.py [--documents 200] [--repeat 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from kedit_core.forward import ForwardTools, TokenBoundary
from kedit_core.models import AdapterRegistry
from kedit_core.models.builtin import plugin
from kedit_core.testing.tiny import tiny_tokenizer
from kedit_methods_locate.stats import IdRows, collect

LAYERS, WIDTH, HEADS, POSITIONS = 12, 768, 12, 1024
READ = (3, 4, 5, 6, 7)
SORTED = 100  # documents that published code sorts and cuts up together
WANTED = 4.0

Totals = dict[int, Tensor]


class Stop(Exception):
    """The layer that is read has been reached."""


def sub_batches(rows: Sequence[Sequence[int]], most: int) -> Iterator[list[Sequence[int]]]:
    """Rows by falling length within each hundred, in batches of at most ``most`` padded tokens."""
    for start in range(0, len(rows), SORTED):
        batch: list[Sequence[int]] = []
        for row in sorted(rows[start : start + SORTED], key=len, reverse=True):
            if batch and len(batch[0]) * (len(batch) + 1) > most:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch


def a_pass_each(model: Any, rows: Sequence[Sequence[int]], *, full: bool) -> tuple[Totals, int]:
    """Sums of every layer, each by a pass of its own; and the tokens of one pass."""
    totals: Totals = {}
    count = 0
    for layer in READ:
        total = torch.zeros(4 * WIDTH, 4 * WIDTH)
        count = 0
        seen: list[Tensor] = []

        def read(_: Any, inputs: tuple[Tensor, ...], seen: list[Tensor] = seen) -> None:
            seen.append(inputs[0])
            if not full:
                raise Stop

        hook = model.transformer.h[layer].mlp.c_proj.register_forward_pre_hook(read)
        try:
            for batch in sub_batches(rows, 3 * POSITIONS):
                width = len(batch[0])
                ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in batch])
                mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch])
                with torch.no_grad(), suppress(Stop):
                    model(input_ids=ids, attention_mask=mask, use_cache=False)
                keys = seen.pop()[mask.bool()]
                total += keys.T @ keys
                count += len(keys)
        finally:
            hook.remove()
        totals[layer] = total
    return totals, count


def documents(count: int, longest: int) -> list[list[int]]:
    """Rows of random ids; lengths from an eighth of the longest to the longest, evenly."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(longest // 8, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(10, 50000, (length,), generator=generator).tolist() for length in lengths]


def measure(count: int, longest: int, repeat: int) -> dict[str, Any]:
    """Seconds of the three ways, and how equal their sums are."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=LAYERS, n_embd=WIDTH, n_head=HEADS, n_positions=POSITIONS)).eval()
    view = AdapterRegistry(plugin.register_adapters()).for_model(model)
    tools = ForwardTools(model, view, TokenBoundary(tiny_tokenizer("byte_bpe")))
    rows = documents(count, longest)

    def one_pass() -> tuple[Totals, int]:
        sums = collect(tools, READ, IdRows(rows))
        return sums.totals, sums.count

    ways: dict[str, Callable[[], tuple[Totals, int]]] = {
        "one pass": one_pass,
        "five passes": lambda: a_pass_each(model, rows, full=False),
        "five full passes": lambda: a_pass_each(model, rows, full=True),
    }
    collect(tools, READ, IdRows(rows[:2]))  # warm
    times: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, tuple[Totals, int]] = {}
    for _ in range(repeat):
        for name, way in ways.items():
            started = time.perf_counter()
            found[name] = way()
            times[name].append(time.perf_counter() - started)
    ours, tokens = found["one pass"]
    return {
        "documents": count,
        "tokens": tokens,
        "layers": list(READ),
        "threads": torch.get_num_threads(),
        "wanted_over_full": WANTED,
        "ways": {
            name: {
                "seconds": min(each),
                "ratio": min(each) / min(times["one pass"]),
                "ratio_median": statistics.median(a / b for a, b in zip(each, times["one pass"], strict=True)),
                "same_tokens": found[name][1] == tokens,
                "difference": max(_difference(ours[layer], found[name][0][layer]) for layer in READ),
            }
            for name, each in times.items()
        },
    }


def _difference(ours: Tensor, other: Tensor) -> float:
    return float((ours - other).norm() / ours.norm())


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--longest", type=int, default=256, help="tokens of the longest document")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    found = measure(options.documents, options.longest, options.repeat)
    print(f"{found['documents']} documents, {found['tokens']} tokens, layers {', '.join(map(str, found['layers']))}")
    print(f"{'way':<18}{'seconds':>9}{'ratio':>8}{'difference':>13}  same tokens")
    for name, way in found["ways"].items():
        print(f"{name:<18}{way['seconds']:9.2f}{way['ratio']:7.2f}x{way['difference']:13.1e}  {way['same_tokens']}")
    print(f"wanted over five full passes: {WANTED:.1f}x")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
