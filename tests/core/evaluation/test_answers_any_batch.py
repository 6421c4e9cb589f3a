"""What a model answers does not depend on batch size, padding side and order: any of them, of trained models too.

(test_answers.py has fixed batches of four families; tests/core/forward has generation and scoring below Answers.)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from kedit_core import Editor
from kedit_core.evaluation import Answers
from kedit_core.forward import TokenBoundary
from kedit_core.models import AdapterRegistry
from kedit_core.models.builtin import ADAPTERS
from kedit_core.testing.tiny import FAMILIES, tiny

Pair = tuple[str, str]
WORLDS = ("factworld:gpt2", pytest.param("factworld:llama", marks=pytest.mark.slow))
NEW = 12


@frozen(eq=False)
class Alone:
    """A model, and what it answers to each question asked alone: an Answers of its own, which knows nothing else."""

    parts: tuple[Any, ...]
    pairs: tuple[Pair, ...]
    said: tuple[str, ...]
    raw: tuple[str, ...]
    sampled: tuple[str, ...]
    tokens: tuple[Any, ...]
    written: tuple[Any, ...]
    logprobs: tuple[torch.Tensor, ...]


def read_alone(parts: tuple[Any, ...], pairs: Sequence[Pair]) -> Alone:
    found: list[tuple[Any, ...]] = []
    for prompt, target in pairs:
        answers = Answers(*parts)
        found.append((
            *answers.generate([prompt], max_new_tokens=NEW), *answers.raw_generate([prompt], NEW),
            *answers.sample([prompt], total_tokens=40, seed=3), *answers.target_tokens([(prompt, target)]),
            *answers.written_tokens([(prompt, target)]), *answers.target_logprobs([(prompt, target)]),
        ))  # fmt: skip
    return Alone(parts, tuple(pairs), *zip(*found, strict=True))


@functools.cache
def world(name: str) -> Alone:
    """A trained model and prompts of its cases: edit prompts, rephrases, neighbours, of every length there is."""
    editor = Editor.from_pretrained(name)
    requests = list(editor.host.dataset("factworld").requests() or ())  # type: ignore[misc]
    pairs: dict[Pair, None] = {}
    for request in requests[::30]:
        pairs |= dict.fromkeys((text, request.target_new) for text in (request.prompt, *request.rephrase_prompts[:1]))
        probes = [probe for listed in request.locality.values() for probe in listed[-1:]]
        pairs |= dict.fromkeys((probe.prompt, probe.answers[0]) for probe in probes)
    by_length = sorted(pairs, key=lambda pair: len(pair[0]))
    chosen = [*by_length[:3], *by_length[3:-3:4], *by_length[-3:]]
    return read_alone((editor.model, editor.adapter, editor.tokens), chosen)


@functools.cache
def untrained(family: str) -> Alone:
    """A tiny model of a family; what it says is nonsense, and differs between any two prompts."""
    model, tokenizer = tiny(family)
    view = AdapterRegistry(ADAPTERS).for_model(model)
    prompts = ("A", "Paris", "The capital of France is", "Norway's language", "The sea to the north of Iceland, it is")
    pairs = [(prompt, target) for prompt, target in zip(prompts, ("Oslo", "New York", "it", "a", "so"), strict=True)]
    return read_alone((model, view, TokenBoundary(tokenizer, encoder_decoder=view.is_encoder_decoder)), pairs)


def check(alone: Alone, chosen: Sequence[int], batch_tokens: int, side: Any) -> None:
    answers = Answers(*alone.parts, batch_tokens=batch_tokens, padding_side=side)
    pairs = [alone.pairs[i] for i in chosen]
    prompts = [prompt for prompt, _ in pairs]

    def wanted(kind: str) -> list[Any]:
        return [getattr(alone, kind)[i] for i in chosen]

    assert answers.generate(prompts, max_new_tokens=NEW) == wanted("said")
    assert answers.raw_generate(prompts, NEW) == wanted("raw")
    assert answers.sample(prompts, total_tokens=40, seed=3) == wanted("sampled")
    assert answers.target_tokens(pairs) == wanted("tokens")
    assert answers.written_tokens(pairs) == wanted("written")
    for found, expected in zip(answers.target_logprobs(pairs), wanted("logprobs"), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


BATCHES = st.sampled_from((1, 37, 90, 200, 8192)) | st.integers(1, 400)
SIDES = st.sampled_from(("left", "right"))


def orders(alone: Alone, most: int) -> st.SearchStrategy[list[int]]:
    """Some of the questions in any order, some of them twice."""
    return st.lists(st.sampled_from(range(len(alone.pairs))), min_size=1, max_size=most)


@pytest.mark.parametrize("name", WORLDS)
def test_of_a_trained_model(name: str) -> None:
    alone = world(name)
    assert len({len(alone.parts[2].prompt(prompt).ids) for prompt, _ in alone.pairs}) > 5, "prompts of many lengths"
    assert len(set(alone.said)) > len(alone.pairs) / 2, "it answers what it is asked"

    @settings(max_examples=5, deadline=None)
    @given(chosen=orders(alone, 10), batch_tokens=BATCHES, side=SIDES)
    def any_batch(chosen: list[int], batch_tokens: int, side: Any) -> None:
        check(alone, chosen, batch_tokens, side)

    any_batch()
    for side in ("left", "right"):
        check(alone, range(len(alone.pairs))[::-1], 8192, side)


@pytest.mark.parametrize("family", FAMILIES)
def test_of_every_family(family: str) -> None:
    alone = untrained(family)
    assert len(set(alone.raw)) > 2

    @settings(max_examples=3, deadline=None)
    @given(chosen=orders(alone, 6), batch_tokens=BATCHES, side=SIDES)
    def any_batch(chosen: list[int], batch_tokens: int, side: Any) -> None:
        check(alone, chosen, batch_tokens, side)

    any_batch()
