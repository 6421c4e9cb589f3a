"""Evaluating edits that were made apart: many in one batch, each row under its own edit, against one patch at a time.

Real edits of a FactWorld model: the patches are made once, then measured both ways, and the results compared: scores,
every string that was read, and log-probabilities of the targets. `--probes edit` asks the edit prompt and its rephrases
only, as most published tables do; `all` (about twenty prompts an edit) leaves less to gain, since the prompts of one
edit are a batch already.

    python benchmarks/single_evaluation.py [--model factworld:llama] [--cases 100] [--probes edit] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from attrs import evolve

from kedit_core import Editor, EditRequest
from kedit_core.editing import cases as core_cases
from kedit_core.evaluation import Evaluation, read_together
from kedit_core.patches import EditPatch
from kedit_core.patches.row_branches import RowBranches

WANTED = 5.0
PROTOCOLS = ("generate", "teacher_forced")
Cases = Sequence[tuple[EditPatch, EditRequest]]


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """No patch is read as rows of a batch."""
    with patch.object(core_cases, "row_fault", lambda model, patch: "one at a time, for the comparison"):
        yield


def timed(editor: Editor, made: Cases) -> tuple[float, Evaluation]:
    """Seconds of one evaluation; the base's answers are known already."""
    started = time.perf_counter()
    found = editor.evaluate_cases(made, protocols=PROTOCOLS)
    return time.perf_counter() - started, found


def logprob_difference(editor: Editor, made: Cases) -> float:
    """Largest difference of a target token's log-probability between the two ways."""
    reader = editor._answers()
    asked = []
    for _, request in made:
        with reader.noting() as questions:
            reader.target_logprobs([(request.prompt, request.target_new)])
        asked.append(questions)
    known = read_together(RowBranches(editor.model, editor.stack.scope, [patch for patch, _ in made]), asked)
    largest = 0.0
    for (edit, request), found in zip(made, known, strict=True):
        with editor.applied(edit):
            (alone,) = editor._answers().target_logprobs([(request.prompt, request.target_new)])
        ((together, _),) = found.values()
        largest = max(largest, float((alone - together).abs().max()))
    return largest


def measure(editor: Editor, count: int, probes: str, repeat: int) -> dict[str, Any]:
    """Both ways in turns, and how equal what they give is."""
    requests = list(editor.host.dataset("factworld").requests())[:count]  # type: ignore[misc]
    if probes == "edit":
        requests = [evolve(request, locality={}, portability={}) for request in requests]
    result = editor.edit(requests, scenario="single", evaluate=False)
    made = list(zip(result.patches, requests, strict=True))
    timed(editor, made[:2])  # warm
    editor.evaluate_cases(made, protocols=PROTOCOLS)  # the base's answers
    times: dict[str, list[float]] = {"one at a time": [], "together": []}
    found: dict[str, Evaluation] = {}
    for _ in range(repeat):
        with one_at_a_time():
            seconds, found["one at a time"] = timed(editor, made)
        times["one at a time"].append(seconds)
        seconds, found["together"] = timed(editor, made)
        times["together"].append(seconds)
    alone, together = found["one at a time"], found["together"]
    return {
        "model": editor.name,
        "cases": count,
        "asked": probes,
        "readings": sum(len(result.outputs) for result in together.values()),
        "threads": torch.get_num_threads(),
        "wanted": WANTED,
        "seconds": {name: min(each) for name, each in times.items()},
        "ratio": min(times["one at a time"]) / min(times["together"]),
        "same_scores": all(alone[name].cases == together[name].cases for name in alone),
        "same_outputs": all(alone[name].outputs == together[name].outputs for name in alone),
        "logprob_difference": logprob_difference(editor, made),
    }


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="factworld:llama")
    parser.add_argument("--method", default="rome")
    parser.add_argument("--steps", type=int, default=10, help="of the value search; few will do here")
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--probes", choices=["edit", "all"], default="all", help="which prompts of a case are asked")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    editor = Editor.from_pretrained(options.model, options.method, overrides={"v_num_grad_steps": options.steps})
    found = measure(editor, options.cases, options.probes, options.repeat)
    print(f"{found['model']}, {found['cases']} edits, {found['readings']} readings, {found['threads']} threads")
    for name, seconds in found["seconds"].items():
        print(f"{name:<16}{seconds:9.2f} s")
    print(
        f"ratio {found['ratio']:.2f}x, wanted {WANTED:.0f}x; same scores: {found['same_scores']}, same texts: ", end=""
    )
    print(f"{found['same_outputs']}, largest difference of a log-probability {found['logprob_difference']:.1e}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
