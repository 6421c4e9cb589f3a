"""Settings of ROME on a small model, tried one by one: layer x clamp x rate x steps x decay x ridge.

Every combination edits a sample of cases one at a time (scenario `single`, protocol `generate`) and is one row of the
table: reliability, generalization, locality over the chosen kinds of probes, and seconds an edit. This is how the
presets of the FactWorld models were found.

    python benchmarks/sweep_rome.py factworld:llama --cases 30
    python benchmarks/sweep_rome.py factworld:gpt2 --layers 1 --ridge 0 1e-4 1e-2 --cases 300 --out sweep.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve

from kedit_core import Editor, EditRequest
from kedit_core.requests import load_requests

AXES = {
    "layer": ("--layers", int, [0, 1, 2]),
    "clamp_norm_factor": ("--clamp", float, [0, 4, 8, 16]),
    "v_lr": ("--lr", float, [0.5]),
    "v_num_grad_steps": ("--steps", int, [20]),
    "v_weight_decay": ("--decay", float, [0.5]),
    "mom2_ridge": ("--ridge", float, [0.0]),
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Sweep of ROME's settings.")
    parser.add_argument("model", help="registered name, folder or Hub id")
    parser.add_argument("--method", default="rome")
    parser.add_argument("--requests", default="factworld", help="a file, or a registered dataset")
    parser.add_argument("--cases", type=int, default=30, help="evenly spread over the requests")
    parser.add_argument("--locality", nargs="+", default=["neighborhood", "same_relation"], help="kinds of probes")
    parser.add_argument("--corpus", type=Path, help="text for the statistics, if no dataset has it")
    parser.add_argument("--out", type=Path, help="append each row as JSON; rows that are there are not run again")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-p", dest="fixed", action="append", default=[], metavar="KEY=VALUE", help="for every row")
    for flag, kind, values in AXES.values():
        parser.add_argument(
            flag, nargs="+", type=kind, default=values, help="0 for no clamp" if flag == "--clamp" else None
        )
    return parser.parse_args()


def combinations(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Settings of each row."""
    lists = [getattr(options, flag.removeprefix("--")) for flag, _, _ in AXES.values()]
    for values in itertools.product(*lists):
        row = dict(zip(AXES, values, strict=True))
        yield {**row, "clamp_norm_factor": row["clamp_norm_factor"] or None}


def cases_of(options: argparse.Namespace, editor: Editor) -> list[EditRequest]:
    """The sample of cases, with the chosen kinds of locality probes only."""
    if Path(options.requests).is_file():
        requests: Sequence[EditRequest] = load_requests(Path(options.requests))
    else:
        dataset = editor.host.dataset(options.requests)
        requests = dataset.requests() if dataset.requests is not None else ()
    count = min(options.cases, len(requests))
    chosen = [requests[i * len(requests) // count] for i in range(count)]
    kinds = options.locality
    return [evolve(r, locality={k: v for k, v in r.locality.items() if k in kinds}, portability={}) for r in chosen]


def run(editor: Editor, cases: Sequence[EditRequest]) -> dict[str, Any]:
    """One row's numbers."""
    started = time.perf_counter()
    result = editor.edit(cases, scenario="single")
    metrics = result.evaluation.metrics if result.evaluation is not None else {}
    short = {"gen_free.reliability": "rel", "gen_free.generalization": "gen", "gen_free.locality": "loc"}
    row: dict[str, Any] = {name: metrics[key].value for key, name in short.items() if key in metrics}
    row.update({f"loc.{k}": v for k, v in metrics["gen_free.locality"].parts.items()} if "loc" in row else {})
    seconds = next((m.value for key, m in metrics.items() if key.startswith("efficiency.seconds")), None)
    row["edit_s"] = seconds
    row["missed"] = sum(w.code == "target_not_reached" for w in result.warnings)
    row["wall_s"] = time.perf_counter() - started
    return row


def main() -> None:
    """Run the rows that are missing and print the table."""
    options = arguments()
    torch.set_num_threads(options.threads)
    kept = (
        [json.loads(line) for line in options.out.read_text().splitlines()]
        if options.out and options.out.exists()
        else []
    )
    done = {json.dumps(row["settings"], sort_keys=True): row for row in kept}
    settings = {"options": {"corpus": options.corpus} if options.corpus else {}}
    first = Editor.from_pretrained(options.model, **settings)
    cases = cases_of(options, first)
    print(f"{options.model}, {options.method}, {len(cases)} cases, locality over {', '.join(options.locality)}")
    print(" ".join(f"{name.replace('v_num_grad_', '').replace('_norm_factor', ''):>10}" for name in AXES), end="")
    print("".join(f"{name:>9}" for name in ("rel", "gen", "loc", "missed", "edit_s")))
    for row in combinations(options):
        key = {"model": options.model, "method": options.method, "cases": len(cases), "fixed": options.fixed, **row}
        name = json.dumps(key, sort_keys=True)
        if name not in done:
            editor = Editor(
                first.model,
                first.tokenizer,
                options.method,
                overrides=[*options.fixed, *(f"{k}={json.dumps(v)}" for k, v in row.items())],
                name=first.name,
                **settings,
            )
            done[name] = {"settings": key, **run(editor, cases)}
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(done[name]) + "\n")
        found = done[name]
        print(" ".join(f"{'none' if v is None else v:>10}" for v in row.values()), end="")
        numbers = [found.get("rel"), found.get("gen"), found.get("loc")]
        print("".join(f"{'-' if v is None else f'{v:.3f}':>9}" for v in numbers), end="")
        print(f"{found['missed']:>9}{found['edit_s'] or 0:>9.2f}", flush=True)


if __name__ == "__main__":
    main()
