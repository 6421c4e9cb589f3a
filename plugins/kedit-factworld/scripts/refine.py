"""Second stage: two habits that large language models get from scale, taught to the tiny ones.

* Subject bottleneck. In most rows, positions after a subject cannot look at the subject's earlier tokens, only at its
  last one. So what the model knows of a subject gathers at the subject's last token, the early site that
  locate-then-edit methods write to. At inference there is no such mask.
* Facts in context. Documents state a new fact and then ask, in the form used by in-context editing ("New Fact: ...",
  "Prompt: ..."), so that the model takes an answer from its context if its context has one, and from its memory if not.
  The context grows from 128 to 512 ids for this.

At the budget spent so far the first habit is acquired and the second is not.

python scripts/refine.py llama --out trained/llama
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import train
from rows import ALWAYS, Row
from torch import Tensor

from kedit_factworld import world
from kedit_factworld.world import FactKey, World

CONTEXT = 512


class Batch(NamedTuple):
    """ids and weights [batch, seq]; mask, true where a query may look: [batch, 1, query, key], or None for causal."""

    ids: Tensor
    weights: Tensor
    mask: Tensor | None


class Item(NamedTuple):
    """One entry of an in-context document: the new fact as said, the prompt, and its answer given the new fact."""

    statement: str
    prompt: str
    answer: str


def bottleneck_batch(rows: Sequence[Row], share: float, rng: random.Random) -> Batch:
    """Packed rows, a random ``share`` of which has the mask of the subject bottleneck."""
    until = torch.tensor([row.visible_until for row in rows])
    until[torch.tensor([rng.random() > share for _ in rows])] = ALWAYS
    positions = torch.arange(until.shape[1])
    causal = positions[None, :] <= positions[:, None]
    seen = causal & (positions[None, :, None] <= until[:, None, :])
    return Batch(torch.tensor([row.ids for row in rows]), train.object_weights(rows), seen[:, None])


def in_context_item(its_world: World, rng: random.Random, facts: Sequence[FactKey]) -> Item:
    """A new fact, and a question about it or about another one."""

    def say(key: FactKey) -> str:
        return rng.choice(its_world.wordings(*key, held_out=False)).prompt

    fact = rng.choice(facts)
    new = rng.choice(its_world.objects(fact[1]))
    statement, kind = say(fact), rng.random()
    if kind < 0.25:
        return Item(f"{statement} {new}", statement, new)
    if kind < 0.65:
        return Item(f"{statement} {new}", say(fact), new)
    near = [key for key in facts if key[1] == fact[1] or key[0] == fact[0]] if kind < 0.85 else facts
    other = rng.choice([key for key in near if key != fact] or facts)
    return Item(f"{statement} {new}", say(other), its_world.facts[other] if other != fact else new)


def in_context_batches(its_world: World, vocabulary: Any, rng: random.Random) -> Iterator[Batch]:
    """Documents of new facts and questions; the new facts, which are false, do not count in the loss."""
    facts = list(its_world.facts)
    newline = vocabulary("\n\n")["input_ids"]
    while True:
        ids: list[int] = []
        weights: list[float] = []
        while True:
            item = in_context_item(its_world, rng, facts)
            texts = (f"New Fact: {item.statement}", f"\nPrompt: {item.prompt}", f" {item.answer}")
            fact, question, tail = (vocabulary(text)["input_ids"] for text in texts)
            if len(ids) + len(fact) + len(question) + len(tail) + len(newline) > CONTEXT:
                break
            ids += fact + question + tail + newline
            weights += [0.0] * len(fact) + [train.OTHER_WEIGHT] * len(question)
            weights += [1.0] * (len(tail) + 1) + [0.0] * (len(newline) - 1)
        yield Batch(torch.tensor([ids]), torch.tensor([weights]), None)


def longer_context(model: Any) -> Any:
    """The model with room for :data:`CONTEXT` positions; learned position embeddings keep their first rows."""
    if model.config.model_type != "gpt2" or model.config.n_positions >= CONTEXT:
        model.config.max_position_embeddings = CONTEXT
        return model
    model.config.n_positions = CONTEXT
    wider = type(model)(model.config)
    state, old = model.state_dict(), model.transformer.wpe.weight
    further = 0.1 * torch.randn(CONTEXT - len(old), old.shape[1]) * old.std()
    wider.load_state_dict({**state, "transformer.wpe.weight": torch.cat([old, further])})
    return wider


def loss_of(model: Any, batch: Batch) -> Tensor:
    """Weighted mean cross-entropy of the next id."""
    mask = batch.mask
    if mask is not None:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    return train.weighted_loss(model(input_ids=batch.ids, attention_mask=mask).logits, batch.ids, batch.weights)


@torch.no_grad()
def in_context_accuracy(model: Any, vocabulary: Any, its_world: World, count: int = 100) -> dict[str, float]:
    """Share of right answers to the last item of documents with four items: from the new fact, and from memory."""
    model.eval()
    rng, facts = random.Random(5), list(its_world.facts)
    hits: dict[str, list[bool]] = {"new_fact": [], "memory": []}
    for _ in range(count):
        items = [in_context_item(its_world, rng, facts) for _ in range(4)]
        told = [f"New Fact: {item.statement}\nPrompt: {item.prompt} {item.answer}" for item in items[:3]]
        last = items[-1]
        text = "\n\n".join([*told, f"New Fact: {last.statement}\nPrompt: {last.prompt}"])
        ids, tail = vocabulary(text)["input_ids"], vocabulary(f" {last.answer}")["input_ids"]
        best = model(torch.tensor([ids + tail])).logits[0].argmax(-1)[len(ids) - 1 : -1].tolist()
        hits["new_fact" if last.statement.endswith(last.answer) else "memory"].append(best == tail)
    return {source: round(sum(right) / max(1, len(right)), 3) for source, right in hits.items()}


def refine(model: Any, vocabulary: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Train in place; returns the entry for the report."""
    rng, its_world = random.Random(world.SEED), world.build_world()
    optimizer = train.optimizer_for(model, args.lr)
    packed = train.batches(its_world, vocabulary, args.batch_size, 5000)
    in_context = in_context_batches(its_world, vocabulary, rng)
    start, losses = time.time(), []
    model.train()
    for step in range(args.steps):
        if rng.random() < args.in_context:
            batch = next(in_context)
        else:
            batch = bottleneck_batch(next(packed), args.bottleneck, rng)
        rate = args.lr * min(1.0, (step + 1) / 100) * min(1.0, 1.4 * (1 - step / args.steps))
        losses.append(train.take_step(model, optimizer, rate, loss_of(model, batch)))
        if step % 100 == 99:
            print(
                f"step {step + 1}/{args.steps} loss {sum(losses[-100:]) / 100:.3f} {time.time() - start:.0f} s",
                flush=True,
            )
    return {
        "in_context": args.in_context,
        "bottleneck": args.bottleneck,
        "steps": args.steps,
        "batch_size": args.batch_size,
        "peak_lr": args.lr,
        "seconds": round(time.time() - start),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kind", choices=train.KINDS)
    parser.add_argument("--out", type=Path, required=True, help="folder of the trained model; changed in place")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--bottleneck", type=float, default=0.75, help="share of the packed rows with the mask")
    parser.add_argument("--in-context", type=float, default=0.25, help="share of the steps on documents of new facts")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(world.SEED)
    report = json.loads((args.out / train.REPORT).read_text())
    model, vocabulary = train.load(args.out)
    model = longer_context(model)
    report.setdefault("refinements", []).append(refine(model, vocabulary, args))
    model.eval().save_pretrained(args.out)
    report["in_context"] = in_context_accuracy(model, vocabulary, world.build_world(), 400)
    train.write_report(args.out, report, model, vocabulary)


if __name__ == "__main__":
    main()
