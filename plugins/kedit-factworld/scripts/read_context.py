"""Third stage: a model that takes an answer from its context when the context has one, and from memory when not.

Refining with long documents of new facts (refine.py) did not teach this at its budget. What does: half of the steps on
many short documents (one to four new facts, each with its question), whose questions are at first mostly the new
fact's own wording, which a model learns to copy, and later mostly other wordings and other facts. The other half keeps
what the model knows. The result is another model, kept beside the one it comes from.

python scripts/read_context.py llama --source src/kedit_factworld/data/models/llama --out trained/llama-reader
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import refine
import torch
import train
from refine import Batch, Item

from kedit_factworld import world
from kedit_factworld.world import FactKey, World

OTHER_WEIGHT = 0.05  # of the questions' own ids, in the loss
FACTS_IN_A_DOCUMENT = (1, 1, 2, 4)


def item(its_world: World, rng: random.Random, facts: Sequence[FactKey], exact: float) -> Item:
    """A new fact, and with probability ``exact`` its own wording as the question; else another wording or fact."""

    def say(key: FactKey) -> str:
        return rng.choice(its_world.wordings(*key, held_out=False)).prompt

    fact = rng.choice(facts)
    new = rng.choice(its_world.objects(fact[1]))
    statement = say(fact)
    if rng.random() < exact:
        return Item(f"{statement} {new}", statement, new)
    kind = rng.random()
    if kind < 0.6:
        return Item(f"{statement} {new}", say(fact), new)
    near = [key for key in facts if key[1] == fact[1] or key[0] == fact[0]] if kind < 0.85 else facts
    other = rng.choice([key for key in near if key != fact] or facts)
    return Item(f"{statement} {new}", say(other), its_world.facts[other] if other != fact else new)


def documents(its_world: World, vocabulary: Any, rng: random.Random, rows: int, exact: float) -> Batch:
    """``rows`` documents padded to the longest; new facts and padding do not count in the loss."""
    facts, newline, stop = list(its_world.facts), vocabulary("\n\n")["input_ids"], vocabulary(".")["input_ids"]
    written: list[tuple[list[int], list[float]]] = []
    for _ in range(rows):
        ids: list[int] = []
        weights: list[float] = []
        for _ in range(rng.choice(FACTS_IN_A_DOCUMENT)):
            told = item(its_world, rng, facts, exact)
            texts = (f"New Fact: {told.statement}", f"\nPrompt: {told.prompt}", f" {told.answer}")
            fact, question, tail = (vocabulary(text)["input_ids"] for text in texts)
            if rng.random() < 0.5:
                tail = tail + stop  # as in the facts' own sentences
            ids += fact + question + tail + newline
            weights += [0.0] * len(fact) + [OTHER_WEIGHT] * len(question)
            weights += [1.0] * (len(tail) + 1) + [0.0] * (len(newline) - 1)
        written.append((ids, weights))
    width = max(len(ids) for ids, _ in written)
    padded = [ids + [vocabulary.eos_token_id] * (width - len(ids)) for ids, _ in written]
    counted = [weights + [0.0] * (width - len(weights)) for _, weights in written]
    return Batch(torch.tensor(padded), torch.tensor(counted), None)


@torch.no_grad()
def reading(model: Any, vocabulary: Any, its_world: World, count: int) -> dict[str, float]:
    """Share of right answers after one new fact: to its own wording, to another, and to another fact of its kind."""
    model.eval()
    rng, facts = random.Random(7), list(its_world.facts)
    hits: dict[str, list[bool]] = {"same": [], "reworded": [], "memory": []}
    for _ in range(count):
        fact = rng.choice(facts)
        new = rng.choice([each for each in its_world.objects(fact[1]) if each != its_world.facts[fact]])
        statement, reworded = (rng.choice(its_world.wordings(*fact, held_out=False)).prompt for _ in range(2))
        other = rng.choice([key for key in facts if key != fact and key[1] == fact[1]])
        recalled = rng.choice(its_world.wordings(*other, held_out=False)).prompt
        asked = {"same": (statement, new), "reworded": (reworded, new), "memory": (recalled, its_world.facts[other])}
        for kind, (prompt, answer) in asked.items():
            ids = vocabulary(f"New Fact: {statement} {new}\nPrompt: {prompt}")["input_ids"]
            tail = vocabulary(f" {answer}")["input_ids"]
            best = model(torch.tensor([ids + tail])).logits[0].argmax(-1)[len(ids) - 1 : -1].tolist()
            hits[kind].append(best == tail)
    return {kind: round(sum(right) / max(1, len(right)), 3) for kind, right in hits.items()}


def learn(model: Any, vocabulary: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Train in place; returns the entry for the report."""
    rng, its_world = random.Random(world.SEED), world.build_world()
    optimizer = train.optimizer_for(model, args.lr)
    packed = train.batches(its_world, vocabulary, args.batch_size, 9000)
    start, losses = time.time(), []
    for step in range(args.steps):
        done = step / args.steps
        model.train()
        if rng.random() < args.in_context:
            batch = documents(its_world, vocabulary, rng, args.documents, max(0.15, 0.5 - done))
        else:
            batch = refine.bottleneck_batch(next(packed), args.bottleneck, rng)
        rate = args.lr * min(1.0, (step + 1) / 100) * min(1.0, 2 * (1 - done))
        losses.append(train.take_step(model, optimizer, rate, refine.loss_of(model, batch)))
        if step % 100 == 99:
            print(
                f"step {step + 1}/{args.steps} loss {sum(losses[-100:]) / 100:.3f} {time.time() - start:.0f} s",
                flush=True,
            )
    return {
        "in_context": args.in_context,
        "documents": args.documents,
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
    parser.add_argument("--source", type=Path, required=True, help="folder of the refined model")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model that reads its context")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=4, help="packed rows of a step")
    parser.add_argument("--documents", type=int, default=16, help="documents of new facts of a step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--bottleneck", type=float, default=0.75, help="share of the packed rows with the mask")
    parser.add_argument("--in-context", type=float, default=0.5, help="share of the steps on documents of new facts")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(world.SEED)
    report = json.loads((args.source / train.REPORT).read_text())
    model, vocabulary = train.load(args.source)
    model = refine.longer_context(model)
    report["reading"] = learn(model, vocabulary, args)
    model.eval().save_pretrained(args.out)
    vocabulary.save_pretrained(args.out)
    report["in_context"] = reading(model, vocabulary, world.build_world(), 400)
    train.write_report(args.out, report, model, vocabulary)


if __name__ == "__main__":
    main()
