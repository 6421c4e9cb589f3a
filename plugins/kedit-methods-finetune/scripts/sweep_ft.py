"""Settings of fine-tuning on a small model, tried one by one: every combination of the values given is one row.

A row edits a sample of cases (protocol `generate`) and prints reliability, generalization, locality over the chosen
kinds of probes, and seconds an edit. `--mode single` edits each case alone, `--mode batch` all together,
`--mode sequential` `--batch-size` at a time. This is how the presets of the FactWorld models were found.

    python sweep_ft.py factworld:llama ft_m --grid 'layers=[3];[4];[5]' 'lr=0.002;0.005'
    python sweep_ft.py factworld:gpt2 ft_bf --mode batch --cases 100 --grid 'layers=[4];[5]' 'num_steps=25;50'
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from attrs import evolve

from kedit_core import Editor, EditRequest

SHORT = {"gen_free.reliability": "rel", "gen_free.generalization": "gen", "gen_free.locality": "loc"}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Sweep of fine-tuning settings.")
    parser.add_argument("model", help="registered name, folder or Hub id")
    parser.add_argument("method", choices=["ft_l", "ft_m", "ft_bf"])
    parser.add_argument("--grid", nargs="+", required=True, metavar="KEY=V;V;...", help="values of a setting")
    parser.add_argument("--mode", choices=["single", "batch", "sequential"], default="single")
    parser.add_argument("--batch-size", type=int, default=1, help="requests of a round of --mode sequential")
    parser.add_argument("--requests", default="factworld", help="a registered dataset")
    parser.add_argument("--cases", type=int, default=30, help="evenly spread over the requests")
    parser.add_argument("--skip", type=int, default=0, help="where in the requests to begin, for facts not tuned on")
    parser.add_argument("--locality", nargs="+", default=["neighborhood", "same_relation"], help="kinds of probes")
    return parser.parse_args()


def combinations(grid: Sequence[str]) -> Iterator[list[str]]:
    """``key=value`` overrides of each row."""
    axes = [
        [f"{key}={value}" for value in values.split(";")] for key, _, values in (each.partition("=") for each in grid)
    ]
    for row in itertools.product(*axes):
        yield list(row)


def sample(editor: Editor, options: argparse.Namespace) -> list[EditRequest]:
    """The cases, with the chosen kinds of locality probes only."""
    dataset = editor.host.dataset(options.requests)
    requests = list(dataset.requests() if dataset.requests is not None else ())
    count = min(options.cases, len(requests))
    chosen = [requests[(options.skip + i * len(requests) // count) % len(requests)] for i in range(count)]
    kinds = options.locality
    return [evolve(r, locality={k: v for k, v in r.locality.items() if k in kinds}, portability={}) for r in chosen]


def main() -> None:
    """Run all rows and print the table."""
    options = arguments()
    torch.set_num_threads(1)
    first = Editor.from_pretrained(options.model)
    cases = sample(first, options)
    print(f"{options.model} {options.method} {options.mode} {len(cases)} cases")
    print("".join(f"{name:>8}" for name in ("rel", "gen", "nbh", "same", "loc", "missed", "wall s")), " settings")
    for row in combinations(options.grid):
        editor = Editor(first.model, first.tokenizer, options.method, overrides=row, name=first.name)
        started = time.perf_counter()
        result = editor.edit(cases, scenario=options.mode, batch_size=options.batch_size)
        metrics: Any = result.evaluation.metrics if result.evaluation is not None else {}
        numbers = {short: metrics[name].value for name, short in SHORT.items() if name in metrics}
        parts = metrics["gen_free.locality"].parts
        missed = sum(w.code == "target_not_reached" for w in result.warnings)
        shown = [numbers.get("rel"), numbers.get("gen"), parts.get("neighborhood"), parts.get("same_relation"),
                 numbers.get("loc")]  # fmt: skip
        print("".join(f"{'-' if v is None else f'{v:.3f}':>8}" for v in shown), end="")
        print(f"{missed:>8}{time.perf_counter() - started:>8.1f}  {' '.join(row)}", flush=True)
        editor.restore()


if __name__ == "__main__":
    main()
