"""Train the editors of the table of results, with the presets of their methods.

    python benchmarks/editors.py [--processes 2]
    python benchmarks/editors.py --methods mend --models factworld:llama
    python benchmarks/table.py

Each is trained by `kedit train` in processes of its own, on cases of `factworld_training` (subjects that no evaluation
case edits), and validated on other subjects. One that is there is left; one that was interrupted goes on. What each
cost is in its state.json, and printed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kedit_core.requests import dump_requests
from kedit_factworld.training import training_cases

MODELS = ("factworld:llama", "factworld:gpt2")
METHODS = ("mend", "malmen", "ke", "serac")
CASES, VALIDATION = 20_000, 200
FEWER = {"ke": (12_000, 300)}  # method -> edits it is trained and validated on
OPTIONS = {"serac": ("--option", "classifier=scratch", "--option", "counterfactual=factworld:llama-reader")}
SHARED = ("serac",)  # not bound to the base it was trained for: one serves all models


def name_of(model: str, method: str) -> str:
    """Name of an editor's folder."""
    return method if method in SHARED else re.sub(r"[^\w.-]+", "-", f"{Path(model).name}.{method}")


def validation_file(count: int) -> str:
    """Name of the file with so many cases to validate on."""
    return f"validation-{count}.jsonl"


def write_validation(folder: Path, count: int, texts: Sequence[str]) -> None:
    """The cases that editors are validated on, of subjects that none is trained on, and of the same relations."""
    given = dict(text.partition("=")[::2] for text in texts)
    cases = training_cases(
        count, seed=1, part="validation", relations=given.get("relations"), without=given.get("without")
    )
    dump_requests(cases, folder / validation_file(count))


def command(model: str, method: str, folder: Path, options: argparse.Namespace) -> list[str]:
    """The `kedit train` that makes one editor."""
    kedit = shutil.which("kedit") or str(Path(sys.executable).with_name("kedit"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(options.processes), "--no-python"]
    start = [*launch, kedit] if options.processes > 1 else [kedit]
    checkpoint = folder.with_name(f"{folder.name}.training") / "last.safetensors"
    cases, validation = FEWER.get(method, (CASES, VALIDATION))
    data = ["--requests", "factworld_training", "--dataset-option", f"count={options.cases or cases}"]
    data += ["--dataset-option", "part=train", *(part for text in options.data for part in ("--dataset-option", text))]
    data += ["--validate", str(options.out / validation_file(validation))]
    settings = [part for text in options.set for part in ("-p", text)]
    resume = ["--resume"] if checkpoint.exists() else []
    return [
        *start,
        "train",
        model,
        "-m",
        method,
        *data,
        *OPTIONS.get(method, ()),
        *settings,
        *resume,
        "-o",
        str(folder),
    ]


def costs(folders: Sequence[Path]) -> Table:
    """What each editor took to train, and how it did on what it was validated on."""
    table = Table("editor", "minutes", "processes", "s / iteration", "peak MiB", "editor MiB", "parameters", "best")
    for folder in folders:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
        cost, trained = state["cost"], state["trained"]
        table.add_row(
            folder.name,
            f"{cost['seconds'] / 60:.1f}",
            str(cost["processes"]),
            f"{cost['seconds_per_iteration']:.2f}",
            f"{cost['peak_memory_bytes'] / 2**20:.0f}",
            f"{cost['editor_bytes'] / 2**20:.1f}",
            f"{cost['parameters']:,}",
            f"{trained['key']} {trained['best']:.3f} at {trained['best_iteration']}",
        )
    return table


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "editors", help="their folder")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--cases", type=int, help=f"edits to train on ({CASES}; for some fewer)")
    parser.add_argument("--processes", type=int, default=1, help="that train together")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the training")
    parser.add_argument("--data", action="append", default=[], metavar="KEY=VALUE", help="an option of the data set")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Command line entry: 0 when every editor is there, 1 when one could not be trained."""
    options = arguments(given)
    options.out.mkdir(parents=True, exist_ok=True)
    for count in {FEWER.get(method, (CASES, VALIDATION))[1] for method in options.methods}:
        write_validation(options.out, count, options.data)
    console, failed, made = Console(highlight=False, width=160), 0, []
    for model in options.models:
        for method in options.methods:
            if method in SHARED and model != options.models[0]:
                continue
            folder = options.out / name_of(model, method)
            code = 0
            if not (folder / "state.json").is_file():
                code = subprocess.run(command(model, method, folder, options), check=False).returncode
            failed += code != 0
            made += [folder] if code == 0 else []
    console.print(costs(made))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
