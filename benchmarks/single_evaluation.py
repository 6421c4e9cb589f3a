"""Evaluating edits that were made apart: many in one batch, each row under its own edit, against one patch at a time.

Real edits of a FactWorld model: the patches are made once, then measured in three ways, and the results compared:
scores, every string that was read, and log-probabilities of the targets.

- ``together``: many edits in one batch.
- ``one at a time``: the same code, with one patch on the model after another; each one's prompts are a batch, every
  prompt is read once, and the base's answers are known already, as they are for ``together``.
- ``plain``: one patch after another and one prompt after another, each prompt read anew for its answer and for its
  target, and the base's answers read anew for each edit: what a loop over edits and prompts costs.

`--probes edit` asks the edit prompt and its rephrases only, as most published tables do; `all` (about twenty prompts an
edit) leaves less to gain, since the prompts of one edit are a batch already. `--metric fluency` adds text of 100 tokens
an edit, by the base and by the edited model (needs kedit-datasets and NLTK).

    python benchmarks/single_evaluation.py [--model factworld:llama] [--cases 100] [--probes edit] [--metric fluency]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from attrs import evolve

from kedit_core import Editor, EditRequest
from kedit_core.editing import cases as core_cases
from kedit_core.editing.base import BaseReading
from kedit_core.evaluation import Answers, Evaluation, model_reading, read_together
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


@contextmanager
def plain() -> Iterator[None]:
    """One patch at a time, one prompt at a time, each question by itself, the base read anew for each patch."""
    measure = Editor._measure

    def measured(self: Editor, *arguments: Any) -> Evaluation:
        self._read.answers.forget()
        return measure(self, *arguments)

    with ExitStack() as changes:
        changes.enter_context(one_at_a_time())
        changes.enter_context(patch.object(BaseReading, "ahead", lambda self, context, requests: None))
        changes.enter_context(patch.object(Editor, "_measure", measured))
        changes.enter_context(patch.object(Answers, "at_once", lambda self: nullcontext()))
        for name in ("generate_ids", "score_pairs"):
            alone = _a_row_at_a_time(getattr(model_reading, name))
            changes.enter_context(patch.object(model_reading, name, alone))
        yield


def _a_row_at_a_time(read: Callable[..., Any]) -> Callable[..., Any]:
    def alone(*arguments: Any, batch_tokens: int, **settings: Any) -> Any:
        return read(*arguments, batch_tokens=1, **settings)

    return alone


WAYS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "together": nullcontext,
    "one at a time": one_at_a_time,
    "plain": plain,
}


def timed(editor: Editor, made: Cases, metrics: Sequence[str] = ()) -> tuple[float, Evaluation]:
    """Seconds of one evaluation."""
    started = time.perf_counter()
    found = editor.evaluate_cases(made, protocols=PROTOCOLS, metrics=metrics)
    return time.perf_counter() - started, found


def logprob_difference(editor: Editor, made: Cases) -> float:
    """Largest difference of a target token's log-probability between a batch of many edits and one at a time.

    Together, the prompt is read once for target and answer; alone, for the target only.
    """
    reader = editor._answers()
    asked = []
    for _, request in made:
        with reader.noting() as questions:
            reader.generate([request.prompt])
            reader.target_logprobs([(request.prompt, request.target_new)])
        asked.append(questions)
    known = read_together(RowBranches(editor.model, editor.stack.scope, [patch for patch, _ in made]), asked)
    largest = 0.0
    for (edit, request), found in zip(made, known, strict=True):
        pair = (request.prompt, request.target_new)
        with editor.applied(edit):
            (alone,) = editor._answers().target_logprobs([pair])
        supplied = editor._answers()
        supplied.supply(found)
        (together,) = supplied.target_logprobs([pair])
        largest = max(largest, float((alone - together).abs().max()))
    return largest


def measure(
    editor: Editor, count: int, probes: str, repeat: int, metrics: Sequence[str] = (), ways: Sequence[str] = tuple(WAYS)
) -> dict[str, Any]:
    """The ways in turns (the plain one once), and how equal what they give is."""
    requests = list(editor.host.dataset("factworld").requests())[:count]  # type: ignore[misc]
    if probes == "edit":
        requests = [evolve(request, locality={}, portability={}) for request in requests]
    result = editor.edit(requests, scenario="single", evaluate=False)
    made = list(zip(result.patches, requests, strict=True))
    run = partial(timed, editor, metrics=metrics)
    run(made[:2])  # warm
    found: dict[str, Evaluation] = {}
    times: dict[str, list[float]] = {way: [] for way in WAYS if way in ways}
    if "plain" in times:
        with plain():
            seconds, found["plain"] = run(made)
        times["plain"].append(seconds)
    run(made)  # the base's answers
    for _ in range(repeat):
        for way in times:
            if way != "plain":
                with WAYS[way]():
                    seconds, found[way] = run(made)
                times[way].append(seconds)
    together = found["together"]
    others = [each for way, each in found.items() if way != "together"]
    best = {way: min(each) for way, each in times.items()}
    return {
        "model": editor.name,
        "cases": count,
        "asked": probes,
        "metrics": list(metrics),
        "readings": sum(len(result.outputs) for result in together.values()),
        "threads": torch.get_num_threads(),
        "wanted": WANTED,
        "seconds": best,
        "ratios": {way: seconds / best["together"] for way, seconds in best.items() if way != "together"},
        "same_scores": all(each[name].cases == together[name].cases for each in others for name in together),
        "same_outputs": all(each[name].outputs == together[name].outputs for each in others for name in together),
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
    parser.add_argument("--metric", choices=["fluency"], action="append", default=[], help="measured besides")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--without-plain", action="store_true", help="leave out the plain way, which takes long")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    ways = [way for way in WAYS if way != "plain" or not options.without_plain]
    editor = Editor.from_pretrained(options.model, options.method, overrides={"v_num_grad_steps": options.steps})
    found = measure(editor, options.cases, options.probes, options.repeat, options.metric, ways)
    asked = " + ".join([f"{found['asked']} prompts", *found["metrics"]])
    print(
        f"{found['model']}, {found['cases']} edits, {asked}: {found['readings']} readings, {found['threads']} threads"
    )
    for way, seconds in found["seconds"].items():
        ratio = f"{found['ratios'][way]:9.2f}x" if way in found["ratios"] else ""
        print(f"{way:<16}{seconds:9.2f} s{ratio}")
    print(
        f"wanted {WANTED:.0f}x; same scores: {found['same_scores']}, same texts: {found['same_outputs']}, "
        f"largest difference of a log-probability {found['logprob_difference']:.1e}"
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
