"""What a model knows of the world: greedy answers, and exact-match rates over all wordings.

Small and self-contained, for the scripts that make the models; edits are judged by ``kedit_core.evaluation``.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from kedit_factworld.world import Statement, World

BATCH = 256


def _batches_of_one_length(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Positions of rows in batches of rows equally long, so that nothing needs padding."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        by_length[len(row)].append(position)
    for positions in by_length.values():
        for start in range(0, len(positions), BATCH):
            yield positions[start : start + BATCH]


@torch.no_grad()
def greedy_answers(model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int = 10) -> list[str]:
    """What the model says after each prompt, greedily, up to and including the first full stop."""
    model.eval()
    rows = tokenizer(list(prompts))["input_ids"]
    answers = [""] * len(rows)
    for positions in _batches_of_one_length(rows):
        ids, cache = torch.tensor([rows[position] for position in positions]), None
        steps = []
        for _ in range(max_new_tokens):
            run = model(input_ids=ids, past_key_values=cache, use_cache=True)
            ids, cache = run.logits[:, -1:].argmax(-1), run.past_key_values
            steps.append(ids)
        for position, text in zip(positions, tokenizer.batch_decode(torch.cat(steps, 1)), strict=True):
            answers[position] = text[: text.index(".") + 1] if "." in text else text
    return answers


@torch.no_grad()
def answered(model: Any, tokenizer: Any, statements: Sequence[Statement]) -> list[bool]:
    """For each statement: does greedy decoding give exactly the object and the full stop?

    Greedy decoding gives a string exactly if each of its ids is the most likely one after those before it, so one
    forward pass over the prompt with the object decides.
    """
    if not statements:
        return []
    model.eval()
    prompts = tokenizer([statement.prompt for statement in statements])["input_ids"]
    tails = tokenizer([f" {statement.object}." for statement in statements])["input_ids"]
    rows = [prompt + tail for prompt, tail in zip(prompts, tails, strict=True)]
    hits = [False] * len(rows)
    for positions in _batches_of_one_length(rows):
        best = model(input_ids=torch.tensor([rows[position] for position in positions])).logits.argmax(-1)
        for row, position in enumerate(positions):
            hits[position] = best[row, len(prompts[position]) - 1 : -1].tolist() == tails[position]
    return hits


def exact_match(model: Any, tokenizer: Any, world: World, limit: int | None = None) -> Mapping[str, float]:
    """Exact-match rates on the four kinds of statements (on a random ``limit`` of each, or on all)."""
    kinds: dict[str, Iterable[Statement]] = {
        "trained_templates": world.statements(held_out=False),
        "held_out_templates": world.statements(held_out=True),
        "two_hop_seen_subjects": world.two_hop_statements(held_out=False),
        "two_hop_held_out_subjects": world.two_hop_statements(held_out=True),
    }
    rates = {}
    for kind, statements in kinds.items():
        chosen = list(statements)
        if limit is not None and limit < len(chosen):
            chosen = random.Random(0).sample(chosen, limit)
        rates[kind] = round(sum(answered(model, tokenizer, chosen)) / len(chosen), 4)
    return rates
