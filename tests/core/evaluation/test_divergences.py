"""How far an edit moves the distributions of what follows, and what is written with its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from kedit_core.errors import InputError
from kedit_core.evaluation import Answers, read_together
from kedit_core.forward import TokenBoundary
from kedit_core.forward.divergence import pair_divergences
from kedit_core.models import AdapterRegistry
from kedit_core.models.builtin import ADAPTERS
from kedit_core.patches import EditPatch, LowRankDelta, Operation, PatchStack, Route, RoutedModel, RouterKind
from kedit_core.patches.operations import RouterOperation
from kedit_core.patches.row_branches import RowBranches
from kedit_core.testing.tiny import tiny

FAMILIES = ("gpt2", "gpt_neox", "llama", "t5")
PROMPTS = ["The capital of France is", "Paris", "What do you think of the sea to the north of Iceland?"]
PAIRS = [(prompt, target) for prompt in PROMPTS for target in ("Oslo", "It is the finest of all")]


class ByLength(RouterKind):
    """Leaves short prompts as they are, puts a sentence before longer ones, sends the longest to another model."""

    def route(self, prompts: Sequence[str]) -> list[Route]:
        elsewhere = Route(model=RoutedModel(*tiny("gpt2")))
        return [Route() if len(p) < 10 else Route(context="It is. ") if len(p) < 30 else elsewhere for p in prompts]


class Bench:
    def __init__(self, family: str) -> None:
        self.model, self.tokenizer = tiny(family)
        self.view = AdapterRegistry(ADAPTERS).for_model(self.model)
        self.boundary = TokenBoundary(self.tokenizer, encoder_decoder=self.view.is_encoder_decoder)
        self.stack = PatchStack.of(self.model, kinds={"test.by_length": ByLength}, view=self.view)

    def answers(self, **settings: Any) -> Answers:
        return Answers(self.model, self.view, self.boundary, self.stack, **settings)

    def delta(self, seed: int = 1) -> LowRankDelta:
        generator = torch.Generator().manual_seed(seed)
        left = torch.randn(self.view.hidden_size, 1, generator=generator)
        right = torch.randn(1, self.view.mlp_size(1), generator=generator)
        return LowRankDelta(self.view.mlp_out_weight(1), left, right)

    def patch(self, *operations: Operation) -> EditPatch:
        return EditPatch.build(
            method={"name": "m", "distribution": "d", "version": "0"},
            base=self.stack.base_of(operations),
            operations=operations,
        )

    def logprobs(self, prompt: str, target: str) -> torch.Tensor:
        """Plainly, one pair, no batch: log-probabilities ``[T, vocabulary]`` after prompt and target so far."""
        pair = self.boundary.pair(prompt, target)
        with torch.no_grad():
            if self.view.is_encoder_decoder:
                fed = torch.tensor([[0, *pair.target_ids[:-1]]])
                logits = self.model(input_ids=torch.tensor([pair.prompt_ids]), decoder_input_ids=fed).logits[0]
            else:
                row = torch.tensor([pair.prompt_ids + pair.target_ids[:-1]])
                logits = self.model(row).logits[0, len(pair.prompt_ids) - 1 :]
        return logits.double().log_softmax(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_divergences_are_those_of_a_plain_computation(family: str) -> None:
    bench = Bench(family)
    before = [bench.logprobs(*pair) for pair in PAIRS]
    bench.stack.apply(bench.patch(bench.delta()))
    now = [bench.logprobs(*pair) for pair in PAIRS]
    for settings in ({}, {"batch_tokens": 1}, {"batch_tokens": 200, "padding_side": "right"}):
        found = bench.answers(**settings).target_divergences(PAIRS[::-1])[::-1]
        for one, p, q in zip(found, before, now, strict=True):
            assert one is not None and one.dtype == torch.float32
            wanted = (p.exp() * (p - q)).sum(-1)
            assert wanted.min() > 1e-4, "the patch moves every distribution"
            torch.testing.assert_close(one.double(), wanted, atol=2e-5, rtol=1e-4)


def test_an_unedited_model_has_not_moved_at_all() -> None:
    bench = Bench("gpt2")
    bare = Answers(bench.model, bench.view, bench.boundary)
    bench.stack.apply(bench.patch(bench.delta()))
    with bench.stack.suspended():
        resting = bench.answers().target_divergences(PAIRS)
    unpatched = Bench("gpt2").answers().target_divergences(PAIRS)
    for found in (
        bare.target_divergences(PAIRS),
        bench.answers(base=True).target_divergences(PAIRS),
        resting,
        unpatched,
    ):
        assert [None if each is None else each.tolist() for each in found] == [
            [0.0] * len(bench.boundary.pair(*pair).target_ids) for pair in PAIRS
        ]


def test_divergences_follow_the_patches_and_leave_them_on() -> None:
    bench = Bench("llama")
    edited = bench.answers()
    patch = bench.patch(bench.delta())
    assert sum(float(each.sum()) for each in edited.target_divergences(PAIRS) if each is not None) == 0.0
    bench.stack.apply(patch)
    said = edited.raw_generate(PROMPTS, 8)
    moved = edited.target_divergences(PAIRS[:1])
    assert moved[0] is not None and float(moved[0].sum()) > 0
    with pytest.raises(InputError, match="target is empty"):
        edited.target_divergences([("x", " ")])
    bench.stack.check()
    moved[0].zero_()  # what is given is the caller's own
    again = edited.target_divergences(PAIRS[:1])
    assert again[0] is not None and float(again[0].sum()) > 0
    edited.forget()
    assert edited.raw_generate(PROMPTS, 8) == said


def test_a_route_to_other_tokens_cannot_be_compared_and_a_context_can() -> None:
    bench = Bench("llama")
    bench.stack.apply(bench.patch(RouterOperation("test.by_length")))
    alone, context, elsewhere = bench.answers().target_divergences(
        [(prompt, "Oslo") for prompt in PROMPTS[1::-1] + PROMPTS[2:]]
    )
    assert alone is not None and context is not None and elsewhere is None
    assert float(alone.sum()) == 0.0
    p, q = bench.logprobs(PROMPTS[0], "Oslo"), bench.logprobs("It is. " + PROMPTS[0], "Oslo")
    torch.testing.assert_close(context.double(), (p.exp() * (p - q)).sum(-1), atol=2e-5, rtol=1e-4)


def test_nothing_is_noted_since_branches_do_not_come_off_for_the_base() -> None:
    bench = Bench("gpt2")
    reader = bench.answers()
    with reader.noting() as questions:
        assert reader.target_divergences(PAIRS) == [None] * len(PAIRS)
        reader.continuations(PROMPTS, 4)
    assert list(questions.kinds) == [("continuation", 4)]
    patch = bench.patch(bench.delta())
    (known,) = read_together(RowBranches(bench.model, bench.stack.scope, [patch]), [questions])
    bench.stack.apply(patch)
    supplied = bench.answers()
    supplied.supply(known)
    assert supplied.continuations(PROMPTS, 4) == bench.answers().continuations(PROMPTS, 4)
    found = supplied.target_divergences(PAIRS)
    wanted = bench.answers().target_divergences(PAIRS)
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_continuations_are_what_is_written_with_its_tokens(family: str) -> None:
    answers = Bench(family).answers()
    written = answers.continuations(PROMPTS, 6)
    assert [each.text for each in written] == answers.raw_generate(PROMPTS, 6)
    boundary = answers._model.readers.own.boundary
    for prompt, each in zip(PROMPTS, written, strict=True):
        assert len(each.tokens) == 6, "this model does not end by itself"
        assert boundary.continuation(boundary.prompt(prompt).ids, each.tokens) == each.text


def test_rows_that_cannot_be_compared_or_do_not_fit_are_refused() -> None:
    bench = Bench("gpt2")
    tools = bench.answers()._model.readers.own.tools
    one, other = bench.boundary.pair("Paris", "is big"), bench.boundary.pair("Paris", "was big")
    with pytest.raises(InputError, match="after the same target tokens only"):
        pair_divergences(tools, tools, [(one, other)], showing_before=bench.stack.suspended)
    bench.stack.apply(bench.patch(bench.delta()))
    with pytest.raises(InputError, match=r"tokens long, and the model has \d+ positions"):
        bench.answers().target_divergences([("Paris " * 3000, "is big")])
    bench.stack.check()
