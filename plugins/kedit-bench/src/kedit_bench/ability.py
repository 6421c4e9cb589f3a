"""General ability: tasks of lm-evaluation-harness on an edited model, beside the same model unedited.

What is on the model acts, memory-based methods too (:mod:`kedit_bench.ability_model`). The unedited model is measured
once for all edits, and kept where the benchmark lies.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import torch

from kedit_bench.ability_model import EXTRA, harness_model
from kedit_bench.spec import AbilitySpec
from kedit_bench.state import CellState
from kedit_core.editing import Editor
from kedit_core.errors import InputError
from kedit_core.evaluation.kept_answers import base_key
from kedit_core.extras import needed
from kedit_core.patches import path_digest

FORMAT = 1
HARNESS = "lm_eval"
BOOTSTRAP = 1000  # resamples where a metric's standard error has no closed form
_WHAT = "measuring general ability"


def measure(editor: Editor, *, spec: AbilitySpec, folder: Path | None = None) -> dict[str, Any]:
    """Run tasks on an Editor's model as it is now and, unless ``folder`` has it already, on the model without patches.

    For each task (or group) its metrics, each with the harness's standard error, beside those of the unedited model,
    and the difference. With ``spec.limit`` the result says ``"smoke": true`` and is no result.

    Raises:
        MissingExtraError: lm_eval is not installed. InputError: a task that nobody knows.
        KeditError: a task that cannot be run on this model.
    """
    return Ability(spec, folder)(editor)


def identity(spec: AbilitySpec) -> dict[str, Any]:
    """All that the figures follow from beside the model. Raises InputError for a folder of tasks that is not there."""
    return {
        "tasks": [[shots, *names] for shots, names in spec.by_shots.items()],
        "include": path_digest(_included(spec)) if spec.include is not None else None,
        "limit": spec.limit,
        "harness": version(HARNESS),
    }


class Ability:
    """The tasks of one benchmark, ready to be run on its models.

    Args:
        folder: where the figures of unedited models are kept, in a folder of their own.

    Raises as :func:`measure`, before any model is loaded.
    """

    def __init__(self, spec: AbilitySpec, folder: Path | None = None) -> None:
        self._spec, self._folder = spec, folder
        self._evaluator = needed("lm_eval", _WHAT, EXTRA)
        managers = needed("lm_eval.tasks", _WHAT, EXTRA)
        with _quiet():
            self._tasks = managers.TaskManager(include_path=str(_included(spec)) if spec.include is not None else None)
        self._identity = identity(spec)
        self._known: dict[str, dict[str, Any]] = {}
        unknown = [name for names in spec.by_shots.values() for name in names if name not in self._tasks.all_tasks]
        if unknown:
            raise InputError(
                f"{HARNESS} knows no task {unknown[0]!r}; `lm-eval ls tasks` lists them, and include names a folder of "
                "your own"
            )

    def __call__(self, editor: Editor) -> dict[str, Any]:
        """The figures of the model as it is now, beside those of the model without patches."""
        before = self.unedited(editor)
        return {
            "harness": f"{HARNESS} {self._identity['harness']}",
            "smoke": self._spec.limit is not None,
            "limit": self._spec.limit,
            "tasks": {name: _beside(task, before[name]) for name, task in self._run(editor).items()},
        }

    def unedited(self, editor: Editor, tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
        """The figures of the model without patches: measured once, then known.

        Args:
            tell: takes a sentence when they must be measured.
        """
        with editor.stack.suspended():
            key = base_key(editor.model, editor.tokenizer, editor.stack.weights_digest())
            parts = json.dumps([FORMAT, key, self._identity], sort_keys=True)
            name = hashlib.sha256(parts.encode()).hexdigest()
            state = CellState(self._folder / "ability" / name[:16], name) if self._folder is not None else None
            if name not in self._known and state is not None and (kept := state.read("unedited")) is not None:
                self._known[name] = kept
            if name not in self._known:
                tell("measuring the general ability of the unedited model")
                self._known[name] = self._run(editor)
                if state is not None:
                    state.write("unedited", self._known[name])
        return self._known[name]

    def _run(self, editor: Editor) -> dict[str, Any]:
        """task -> its shots, documents, version, and metric -> value and standard error."""
        model = harness_model(editor, self._spec.batch_tokens)
        found: dict[str, Any] = {}
        for shots, names in self._spec.by_shots.items():
            with _own_randomness(), _quiet():
                results = self._evaluator.simple_evaluate(
                    model=model,
                    tasks=list(names),
                    num_fewshot=shots,
                    limit=self._spec.limit,
                    task_manager=self._tasks,
                    bootstrap_iters=BOOTSTRAP,
                    log_samples=False,
                )
            found |= _figures(results, names)
        return found


def _figures(results: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What is kept of the harness's results: the tasks and groups asked for; of a tag, all that it stands for."""
    by_task: Mapping[str, Mapping[str, Any]] = results["results"]
    wanted = names if all(name in by_task for name in names) else list(by_task)
    found = {}
    for name in wanted:
        metrics: dict[str, dict[str, float | None]] = {}
        for key, value in by_task[name].items():
            metric, comma, way = key.partition(",")  # "acc,none", and "acc_stderr,none" beside it
            if not comma or metric.endswith("_stderr") or isinstance(value, str):
                continue
            error = by_task[name].get(f"{metric}_stderr,{way}")
            label = metric if way == "none" else f"{metric}.{way}"
            metrics[label] = {"value": _finite(value), "stderr": _finite(error)}
        counts = results.get("n-samples", {}).get(name)
        found[name] = {
            "shots": results.get("n-shot", {}).get(name),
            "documents": counts["effective"] if counts else None,
            "version": results.get("versions", {}).get(name),
            "metrics": metrics,
        }
    return found


def _beside(task: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    metrics = {}
    for name, now in task["metrics"].items():
        then = before["metrics"][name]
        both = now["value"] is not None and then["value"] is not None
        metrics[name] = {
            **now,
            "unedited": then["value"],
            "unedited_stderr": then["stderr"],
            "delta": now["value"] - then["value"] if both else None,
        }
    return {**task, "metrics": metrics}


def _finite(value: Any) -> float | None:
    """A number that JSON can hold; the harness says "N/A" where it has no standard error."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _included(spec: AbilitySpec) -> Path:
    folder = Path(str(spec.include))
    if not folder.is_dir():
        raise InputError(f"ability: include {spec.include} is no folder; name the folder of your tasks' YAML files")
    return folder


@contextmanager
def _own_randomness() -> Iterator[None]:
    """The harness sets the seeds of the whole process; here for the length of a block."""
    python, numbers = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(numbers)


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness prints, and so do programs that it starts; its bars are shown on a terminal, and nothing else."""
    shown = sys.stderr.isatty()
    try:
        kept = os.dup(2)
    except OSError:  # a process without standard error
        yield
        return
    try:
        with Path(os.devnull).open("w") as nowhere, os.fdopen(os.dup(kept), "w") as terminal:
            os.dup2(nowhere.fileno(), 2)
            with redirect_stdout(nowhere), redirect_stderr(terminal if shown else nowhere):
                yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
