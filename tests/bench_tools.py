"""What the tests of kedit-bench share: requests, a model, a method that extends its patch, and runs as processes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import toy_methods
from toy_implementations import Nudge
from warm_processes import WarmProcess

from kedit_bench.commands.bench import bench
from kedit_bench.reader import spec_from
from kedit_bench.run import run_bench
from kedit_core import EditPatch, EditRequest, hookimpl
from kedit_core.plugins import COMMANDS, GROUPS, Catalogue, Found
from kedit_core.requests import Probe, dump_requests
from kedit_core.testing.tiny import tiny

LANDS = ("France", "Chad", "Norway", "Peru", "Japan", "Italy", "Kenya", "Nepal", "Cuba", "Iran", "Iraq", "Mali")
TOWNS = ("Rome", "Oslo", "Paris", "Lima", "Bern", "Cairo", "Delhi")

gathering = toy_methods.info("gathering", "Gathering", state="extend")
gathering = type(gathering)(
    **{
        **{each: getattr(gathering, each) for each in gathering.__slots__ if not each.startswith("__")},
        "implementation": "bench_tools:Gathering",
    }
)


class Gathering(Nudge):
    """Keeps all facts in one patch: each round's patch holds what the one before held, and what is new."""

    @hookimpl
    def compute_patch(self, context: Any, requests: Any, hparams: Any) -> EditPatch:
        new = self.operations(context, requests, hparams)
        if context.previous is None:
            return context.new_patch(new, requests)
        before = [EditRequest(**{**fact, "subject_span": None}) for fact in context.previous.requests]
        return context.new_patch([*context.previous.operations, *new], [*before, *requests])


def catalogue() -> Catalogue:
    """What is installed, the toy methods, and the command where its package is on the path only."""
    installed = Catalogue.installed()
    entries = [found for group in GROUPS for found in installed.entries(group)]
    if "bench" not in installed.commands():
        entries.append(Found.of(COMMANDS, "bench", bench))
    return Catalogue(entries).including(*toy_methods.ALL, gathering)


def some_requests(count: int, *, prefix: str = "", case_ids: bool = True) -> list[EditRequest]:
    """Requests with a rephrase, a locality and a portability probe each."""
    found = []
    for number in range(count):
        land, town = LANDS[number % len(LANDS)], TOWNS[number % len(TOWNS)]
        found.append(
            EditRequest(
                prompt=f"{prefix}The capital number {number} of {land} is",
                subject=land,
                target_new=town,
                case_id=f"case-{number}" if case_ids else None,
                rephrase_prompts=(f"{prefix}{land} number {number} is ruled from",),
                locality={"near": (Probe(prompt=f"{prefix}The river {number} of {land} is", answers=("Rhine",)),)},
                portability={"hop": (Probe(prompt=f"{prefix}In {number} of {land} they speak", answers=("Latin",)),)},
            )
        )
    return found


def model_folder(path: Path) -> Path:
    """A tiny llama as a folder."""
    for each in tiny("llama"):
        each.save_pretrained(path)
    return path


def request_file(path: Path, count: int, **more: Any) -> Path:
    """A file of requests."""
    dump_requests(some_requests(count, **more), path)
    return path


def run(folder: Path, root: Path, *, tell: Any = lambda text: None, **fields: Any) -> dict[str, Any]:
    """A benchmark of the toy methods on the model in ``folder/model`` with ``folder/cases.jsonl``."""
    data = {
        "models": [str(folder / "model")],
        "methods": ["nudge"],
        "datasets": [str(folder / "cases.jsonl")],
        "protocols": ["teacher_forced"],
        "baselines": False,
        **fields,
    }
    return run_bench(spec_from(data), root, catalogue=catalogue(), cache=folder / "cache", tell=tell)


_MAIN = """
import sys
import bench_tools
from kedit_core.plugins import Catalogue
installed = bench_tools.catalogue()
Catalogue.installed = classmethod(lambda cls: installed)
import torch
torch.set_num_threads(1)
from kedit_core.cli.root import kedit
kedit.main(["bench", *sys.argv[1:]])
"""


def start(arguments: Sequence[str | Path], cache: Path) -> WarmProcess:
    """``kedit bench`` with the toy methods as a process of its own."""
    paths = [path for path in sys.path if path] + [str(Path(__file__).parent)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "KEDIT_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
    }
    return WarmProcess(_MAIN, arguments, environment)


def figures(bench: Mapping[str, Any]) -> dict[str, Any]:
    """A benchmark's result without what differs between two runs of the same: clocks, and memory in use."""
    copy: dict[str, Any] = json.loads(json.dumps(bench))
    for name in ("started", "finished", "seconds"):
        copy["manifest"].pop(name)
    for cell in copy["cells"]:
        cell.pop("seconds")
        for evaluation in (cell["evaluation"], *(each["evaluation"] for each in cell["checkpoints"])):
            for name in ("efficiency.seconds", "efficiency.peak_memory"):
                evaluation["metrics"].pop(name, None)
        for metrics in cell["by_source"].values():
            for name in ("efficiency.seconds", "efficiency.peak_memory"):
                metrics.pop(name, None)
    return copy
