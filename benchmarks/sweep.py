"""Settings of a method on a small model, tried one by one: all combinations of the values given.

Every combination edits the same cases, each alone, in batches or in one sequence, and is one row of the table:
reliability, generalization, locality over the chosen kinds of probes (protocol `generate`), and processor seconds a
fact. This is how the presets of the FactWorld models were found; for settings of your own model there is `kedit tune`.

    python benchmarks/sweep.py factworld:llama --method rome --try layer 0 1 2 --try v_lr 0.2 0.5
    python benchmarks/sweep.py factworld:gpt2 --method ft_bf --sequential 10 --cases 100 --try num_steps 25 50
    python benchmarks/sweep.py factworld:llama --method memit --batch 30 --try layers "[0,1]" "[1]" --out sweep.jsonl
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
from kedit_core.evaluation import combine
from kedit_core.requests import load_requests

METRICS = {"rel": "gen_free.reliability", "gen": "gen_free.generalization", "loc": "gen_free.locality"}


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="registered name, folder or Hub id")
    parser.add_argument("--method", required=True)
    parser.add_argument("--try", dest="axes", action="append", nargs="+", default=[], metavar=("KEY", "VALUE"))
    parser.add_argument("-p", dest="fixed", action="append", default=[], metavar="KEY=VALUE", help="for every row")
    many = parser.add_mutually_exclusive_group()
    many.add_argument("--batch", type=int, default=0, help="edit so many together; 0: each alone")
    many.add_argument("--sequential", type=int, default=0, metavar="N", help="all in one sequence, N facts a round")
    parser.add_argument("--requests", default="factworld", help="a file, or a registered dataset")
    parser.add_argument("--cases", type=int, default=30, help="evenly spread over the requests")
    parser.add_argument("--skip", type=int, default=0, help="begin so much later: for cases that were not tuned on")
    parser.add_argument("--first", action="store_true", help="the first cases instead")
    parser.add_argument("--locality", nargs="+", default=["neighborhood", "same_relation"], help="kinds of probes")
    parser.add_argument("--corpus", type=Path, help="text for the statistics, if no dataset has it")
    parser.add_argument("--out", type=Path, help="append each row as JSON; rows that are there are not run again")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(given)


def combinations(options: argparse.Namespace) -> Iterator[dict[str, str]]:
    """Settings of each row, as the texts they were given in."""
    names = [axis[0] for axis in options.axes]
    for values in itertools.product(*(axis[1:] for axis in options.axes)):
        yield dict(zip(names, values, strict=True))


def cases_of(options: argparse.Namespace, editor: Editor) -> list[EditRequest]:
    """The sample of cases, with the chosen kinds of locality probes only."""
    if Path(options.requests).is_file():
        requests: Sequence[EditRequest] = load_requests(Path(options.requests))
    else:
        dataset = editor.host.dataset(options.requests)
        requests = dataset.requests() if dataset.requests is not None else ()
    count = min(options.cases, len(requests))
    places = range(count) if options.first else [i * len(requests) // count for i in range(count)]
    chosen = [requests[(options.skip + i) % len(requests)] for i in places]
    kinds = options.locality
    return [evolve(r, locality={k: v for k, v in r.locality.items() if k in kinds}, portability={}) for r in chosen]


def run(editor: Editor, cases: Sequence[EditRequest], batch: int, sequential: int) -> dict[str, Any]:
    """One row's numbers."""
    started = time.process_time()
    if sequential:
        results = [editor.edit(cases, scenario="sequential", batch_size=sequential)]
        editor.restore()
    elif batch:
        results = []
        for start in range(0, len(cases), batch):
            results.append(editor.edit(cases[start : start + batch], scenario="batch"))
            editor.restore()
    else:
        results = [editor.edit(cases, scenario="single")]
    metrics = combine([result.evaluation for result in results if result.evaluation is not None]).metrics
    row: dict[str, Any] = {name: metrics[key].value for name, key in METRICS.items() if key in metrics}
    row.update({f"loc.{k}": v for k, v in metrics[METRICS["loc"]].parts.items()} if "loc" in row else {})
    row["missed"] = sum(w.code == "target_not_reached" for result in results for w in result.warnings)
    row["seconds"] = (time.process_time() - started) / len(cases)  # with reading the answers
    return row


def main(given: Sequence[str] | None = None) -> None:
    """Run the rows that are missing and print the table."""
    options = arguments(given)
    torch.set_num_threads(options.threads)
    there = options.out.read_text().splitlines() if options.out and options.out.exists() else []
    done = {json.dumps(row["settings"], sort_keys=True): row for row in map(json.loads, there)}
    settings: dict[str, Any] = {"options": {"corpus": options.corpus} if options.corpus else {}}
    first = Editor.from_pretrained(options.model, **settings)
    cases = cases_of(options, first)
    together = f"batches of {options.batch}" if options.batch else "each alone"
    if options.sequential:
        together = f"one after another, {options.sequential} a round"
    print(f"{options.model}, {options.method}, {len(cases)} cases {together}, locality: {', '.join(options.locality)}")
    names = [axis[0] for axis in options.axes]
    print("".join(f"{name:>24}" for name in names) + "".join(f"{name:>9}" for name in (*METRICS, "missed", "s/fact")))
    for row in combinations(options):
        key = {
            "model": options.model,
            "method": options.method,
            "cases": len(cases),
            "first": options.first,
            "batch": options.batch,
            **{name: value for name in ("sequential", "skip") if (value := getattr(options, name))},
            "fixed": options.fixed,
            **row,
        }
        name = json.dumps(key, sort_keys=True)
        if name not in done:
            overrides = [*options.fixed, *(f"{field}={value}" for field, value in row.items())]
            editor = Editor(
                first.model, first.tokenizer, options.method, overrides=overrides, name=first.name, **settings
            )
            done[name] = {"settings": key, **run(editor, cases, options.batch, options.sequential)}
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(done[name]) + "\n")
        found = done[name]
        numbers = ["-" if found.get(metric) is None else f"{found[metric]:.3f}" for metric in METRICS]
        cells = [*numbers, str(found["missed"]), f"{found['seconds']:.2f}"]
        print("".join(f"{value:>24}" for value in row.values()) + "".join(f"{cell:>9}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
