"""What editors that learn to edit cost on a GPT-2 of random weights, each figure against a plain way in the same run.

- ``gradient``: what an edit is made from. Factors captured at the edited modules, only what lies above the lowest of
  them in the graph, against whole gradients of the same weights by autograd. Their products are compared.
- ``step``: one micro-batch of MEND's training. Many separate edits tried in one batch of rows, each under its own edit,
  against one after another. The losses are compared.
- ``edit``: seconds and bytes of one edit and of a batch by MEND, MALMEN and KE, whose editors are of their usual size,
  and hardly trained: it is their cost that counts here.

    python benchmarks/meta_edits.py [--layers 12] [--width 768] [--facts 10] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attrs import evolve
from gpt2_shape import Shape, facts
from rich.console import Console
from rich.table import Table
from torch import Tensor

from kedit_core import Editor, EditRequest
from kedit_core.evaluation.efficiency import measured
from kedit_core.testing.tiny import tiny_tokenizer
from kedit_core.training import train
from kedit_core.training.run import training_context, training_settings
from kedit_methods_meta.factors import gradient_factors
from kedit_methods_meta.places import places_of

TURNS = 3
METHODS = ("mend", "malmen", "ke")


def timed(run: Callable[[], Any], model: Any, turns: int = TURNS) -> tuple[float, int, Any]:
    """Least seconds of some turns, most bytes beside the model, and what came out."""
    seconds, peak, found = [], 0, None
    for _ in range(turns):
        with measured(model, 0.002) as measuring:
            started = time.perf_counter()
            found = run()
            seconds.append(time.perf_counter() - started)
        peak = max(peak, measuring.peak.bytes)
    return min(seconds), peak, found


def records(count: int) -> list[EditRequest]:
    """Made-up facts to train on, with a rewording each."""
    return [
        evolve(each, case_id=f"c{number}", rephrase_prompts=(f"It is said that {each.prompt}",), ground_truth="a baker")
        for number, each in enumerate(facts(count))
    ]


def gradients(editor: Editor, requests: list[EditRequest], layers: tuple[int, ...]) -> list[dict[str, Any]]:
    """Factors against whole gradients."""
    context = editor.context()
    places = places_of(context.adapter, ("mlp_in", "mlp_out"), layers)
    pairs = [context.tokens.pair(each.prompt, each.target_new) for each in requests]
    weights = [dict(context.model.named_parameters())[place.name] for place in places]

    def whole() -> dict[str, Tensor]:
        rows = [torch.tensor([*pair.prompt_ids, *pair.target_ids]) for pair in pairs]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        for weight in weights:
            weight.requires_grad_(True)
        logits = context.model(input_ids=ids).logits.log_softmax(-1)
        loss = logits.new_zeros(())
        for row, pair in enumerate(pairs):
            at = torch.arange(len(pair.target_ids)) + len(pair.prompt_ids) - 1
            loss = loss - logits[row, at, torch.tensor(pair.target_ids)].mean()
        found = torch.autograd.grad(loss, weights)
        return {place.name: each for place, each in zip(places, found, strict=True)}

    plain = timed(whole, context.model)
    for weight in weights:
        weight.requires_grad_(False)
    fast = timed(lambda: gradient_factors(context.forward, pairs, places), context.model)
    apart = max(float((fast[2][name].gradient.T - each).norm() / each.norm()) for name, each in plain[2].items())
    held = sum(each.inputs.nbytes + each.gradients.nbytes for each in fast[2].values())
    rows = [("whole gradients", *plain[:2], sum(each.nbytes for each in plain[2].values()), 0.0)]
    rows += [("factors", *fast[:2], held, apart)]
    return [
        {"what": "gradient", "way": way, "seconds": seconds, "peak": peak, "held": held, "apart": apart}
        for way, seconds, peak, held, apart in rows
    ]


def steps(editor: Editor, requests: list[EditRequest], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Separate tries in one batch against one after another."""
    count = len(requests) // 3
    resolved = training_settings(editor, {**settings, "batch_size": count})
    context = training_context(editor, resolved.hparams, requests[: 2 * count], requests[2 * count :])
    for parameter in editor.model.parameters():
        parameter.requires_grad_(False)
    trainer: Any = editor.host.make_trainer(context, resolved.hparams)
    batch = trainer.draw(range(count), torch.Generator().manual_seed(0))
    trainer.run_step(batch)  # statistics; from here on they stand still
    trainer.module.observed = lambda factors: []
    parameters = list(trainer.parameters().values())

    def run(groups: list[Any]) -> float:
        found = [trainer.run_step(group).total / len(groups) for group in groups]
        for total in found:
            torch.autograd.grad(total, parameters)
        return float(sum(total.detach() for total in found))

    def one_by_one() -> float:
        total = 0.0
        for example in batch:
            total += run([(example,)]) / len(batch)
        return total

    plain, fast = timed(one_by_one, editor.model, 1), timed(lambda: run([batch]), editor.model, 1)
    rows = [("one after another", *plain[:2], 0.0), ("in one batch", *fast[:2], abs(fast[2] / plain[2] - 1))]
    return [{"what": "step", "way": w, "seconds": s, "peak": p, "held": 0, "apart": a} for w, s, p, a in rows]


def edits(shape: Shape, folder: Path, count: int, settings: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One edit and a batch, by each method."""
    found = []
    for method in METHODS:
        learner = Editor(shape.model(), tiny_tokenizer("byte_bpe"), method)
        some = {"iterations": 1, "val_interval": 1, "val_items": 2, "accumulate": 1}
        made = train(
            learner, records(16)[:8], folder / method, {**some, **settings[method]}, validation=records(16)[8:]
        )
        user = Editor(shape.model(), tiny_tokenizer("byte_bpe"), method, resources={"editor": folder / method})
        user.compute(facts(1))  # reads the editor
        for number in (1, count):

            def edit(number: int = number, user: Editor = user) -> Any:
                return user.compute(facts(count)[:number])

            seconds, peak, patch = timed(edit, user.model)
            row = {"what": "edit", "way": f"{method}, {number}", "seconds": seconds, "peak": peak}
            found.append(
                {**row, "held": len(patch.to_bytes()), "apart": 0.0, "editor_bytes": made.cost["editor_bytes"]}
            )
    return found


def show(rows: list[dict[str, Any]]) -> Table:
    """As a table."""
    table = Table("what", "way", "ms", "ratio", "peak MiB", "held or patch MiB", "editor MiB", "relative difference")
    for row in rows:
        base = next(each for each in rows if each["what"] == row["what"])
        ratio = "" if row["what"] == "edit" else f"{base['seconds'] / row['seconds']:.1f}"
        editor = f"{row['editor_bytes'] / 2**20:.0f}" if "editor_bytes" in row else ""
        table.add_row(
            row["what"], row["way"], f"{1e3 * row['seconds']:.0f}", ratio, f"{row['peak'] / 2**20:.0f}",
            f"{row['held'] / 2**20:.2f}", editor, f"{row['apart']:.1e}",
        )  # fmt: skip
    return table


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--facts", type=int, default=10, help="of a batch")
    parser.add_argument("--rank", type=int, default=1920, help="of the nets of MEND and MALMEN")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shape = Shape(layers=options.layers, width=options.width, heads=options.heads)
    last = tuple(range(options.layers - 3, options.layers))
    chosen = {"layers": list(last), "parts": ["mlp_in", "mlp_out"]}
    settings = {
        "mend": {**chosen, "rank": options.rank},
        "malmen": {"layers": list(last), "rank": options.rank, "batch_size": 4},
        "ke": {**chosen, "editable": "chosen", "unrelated": 1},
    }
    rows = gradients(Editor(shape.model(), tiny_tokenizer("byte_bpe"), None), facts(options.facts), last)
    learner = Editor(shape.model(), tiny_tokenizer("byte_bpe"), "mend")
    rows += steps(learner, records(3 * options.facts), settings["mend"])
    with tempfile.TemporaryDirectory() as folder:
        rows += edits(shape, Path(folder), options.facts, settings)
    Console(width=140).print(show(rows))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
