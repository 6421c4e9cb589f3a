from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from kedit_core.errors import InputError
from kedit_core.evaluation import SENTENCE, WILD, Answers, TargetTokens
from kedit_core.forward import TokenBoundary, TopK
from kedit_core.models import AdapterRegistry
from kedit_core.models.builtin import ADAPTERS
from kedit_core.patches import (
    EditPatch,
    LowRankDelta,
    PatchStack,
    Route,
    RoutedModel,
    RouterKind,
    RouterOperation,
)
from kedit_core.testing.tiny import tiny

FAMILIES = ("gpt2", "llama", "opt", "t5")
PROMPTS = [
    "The capital of France is",
    "Paris",
    "She was born in the city of",
    "Norway's language",
    "The mother tongue of Danielle Darrieux, who was an actress, is",
    "Who wrote it? It was",
    "A",
    "The sea to the north of Iceland and to the east of Greenland, as sailors have known for long, is",
    "He plays the",
]
PAIRS = [(prompt, target) for prompt in PROMPTS for target in ("Oslo", "New York", "the piano")]


def answers_of(family: str, **settings) -> Answers:
    model, tokenizer = tiny(family)
    view = AdapterRegistry(ADAPTERS).for_model(model)
    boundary = TokenBoundary(tokenizer, encoder_decoder=view.is_encoder_decoder)
    return Answers(model, view, boundary, **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_do_not_depend_on_batches_padding_or_order(family: str) -> None:
    alone = answers_of(family, batch_tokens=1)
    said, raw = alone.generate(PROMPTS), alone.raw_generate(PROMPTS, 12)
    tokens, logprobs = alone.target_tokens(PAIRS), alone.target_logprobs(PAIRS)
    assert len(set(raw)) > 3  # not one answer to everything
    for batch_tokens in (100, 8192):
        for side in ("left", "right"):
            other = answers_of(family, batch_tokens=batch_tokens, padding_side=side)
            assert other.generate(PROMPTS[::-1]) == said[::-1]
            assert other.raw_generate(PROMPTS, 12) == raw
            assert other.target_tokens(PAIRS[::-1]) == tokens[::-1]
            for one, two in zip(other.target_logprobs(PAIRS), logprobs, strict=True):
                torch.testing.assert_close(one, two, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_stopping_early_gives_what_cutting_late_gives(family: str) -> None:
    answers = answers_of(family)
    for rule in (SENTENCE, WILD):
        whole = answers.raw_generate(PROMPTS, 50)
        assert answers.generate(PROMPTS, rule=rule) == [rule.cut(text) for text in whole]


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_greedy_answers_are_those_of_transformers(family: str) -> None:
    answers = answers_of(family)
    model, tokenizer = tiny(family)
    for prompt in PROMPTS[:3]:
        ids = torch.tensor([TokenBoundary(tokenizer).prompt(prompt).ids])
        mask = torch.ones_like(ids)
        full = model.generate(ids, attention_mask=mask, max_new_tokens=10, do_sample=False, pad_token_id=0)
        new = tokenizer.decode(full[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        old = tokenizer.decode(ids[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert old + answers.raw_generate([prompt], 10)[0] == new


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_target_scores_by_hand(family: str) -> None:
    answers = answers_of(family)
    model, tokenizer = tiny(family)
    pair = TokenBoundary(tokenizer).pair("The capital of France is", "New York")
    with torch.no_grad():
        logits = model(torch.tensor([pair.prompt_ids + pair.target_ids])).logits[0].log_softmax(-1)
    rows = logits[len(pair.prompt_ids) - 1 : -1]
    (logprobs,) = answers.target_logprobs([("The capital of France is", " New York ")])
    (tokens,) = answers.target_tokens([("The capital of France is", "New York")])
    torch.testing.assert_close(logprobs, rows[range(len(pair.target_ids)), list(pair.target_ids)])
    assert tokens.predicted == tuple(rows.argmax(-1).tolist())
    assert tokens.target == pair.target_ids


def test_t5_decoder_is_fed_the_target_shifted_right_and_no_end_token_counts() -> None:
    answers = answers_of("t5")
    model, tokenizer = tiny("t5")
    prompt = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    target = tokenizer("New York", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=prompt, decoder_input_ids=torch.tensor([[0, *target[:-1]]])).logits[0]
    (tokens,) = answers.target_tokens([("The capital of France is", "New York")])
    assert tokens.target == tuple(target) and tokenizer.eos_token_id not in tokens.target
    assert tokens.predicted == tuple(logits.argmax(-1).tolist())


def chained(*chains: str, family_seed: int = 0) -> tuple[torch.nn.Module, object]:
    """A Llama whose next token follows from the last one alone, along the tokens of each chain; the last one ends."""
    model, tokenizer = tiny("llama", kind="byte_bpe_bos", hidden_size=256, num_hidden_layers=1, head_dim=8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")) or name == "lm_head.weight":
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1.0)
        embeddings = model.model.embed_tokens.weight
        follows: dict[int, int] = {}
        for chain in chains:
            ids = tokenizer(chain, add_special_tokens=False)["input_ids"]
            for token, following in zip(ids, [*ids[1:], tokenizer.eos_token_id], strict=True):
                assert follows.setdefault(token, following) == following, "the chains contradict each other"
        for token, following in follows.items():
            model.lm_head.weight[following] += embeddings[token]
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer


@pytest.mark.parametrize(
    ("chain", "prompt", "sentence", "wild"),
    [
        ("xSt. Lou", "x", "St. Lou", "St"),  # a title's dot, then the end token
        ("x3.5", "x", "3.5", "3"),  # a decimal's
        ("xJ. Rowling", "x", "J. Rowling", "J"),  # an initial's
        ("xParis.", "x", "Paris", "Paris"),  # decided by the end token
        ("xParis. Lyon", "x", "Paris", "Paris"),  # decided by the space
        ("xParis\nLyo", "x", "Paris", "Paris"),
        ("xParis", "x", "Paris", "Paris"),
    ],
)
def test_full_stops_while_decoding(chain: str, prompt: str, sentence: str, wild: str) -> None:
    model, tokenizer = chained(chain)
    answers = Answers(model, AdapterRegistry(ADAPTERS).for_model(model), TokenBoundary(tokenizer))
    assert answers.raw_generate([prompt]) == [chain.removeprefix(prompt)]
    assert answers.generate([prompt]) == [sentence]
    assert answers.generate([prompt], rule=WILD) == [wild]


@contextmanager
def counted(model: torch.nn.Module) -> Iterator[list[int]]:
    calls: list[int] = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        handle.remove()


def test_each_answer_is_read_once_and_nothing_before_it_is_asked_for() -> None:
    answers = answers_of("gpt2")
    with counted(answers._model.readers.own.model) as calls:
        assert calls == []
        first = answers.generate(PROMPTS)
        ran = len(calls)
        assert 0 < ran <= 50  # one batch: as many passes as the longest answer has tokens
        assert answers.generate([PROMPTS[2], PROMPTS[0], PROMPTS[2]]) == [first[2], first[0], first[2]]
        assert len(calls) == ran
        answers.target_tokens(PAIRS)
        answers.target_logprobs(PAIRS[::2])
        assert len(calls) == ran + 1
        answers.generate(PROMPTS[:1], rule=WILD)
        assert len(calls) > ran + 1
        answers.forget()
        ran = len(calls)
        assert answers.generate(PROMPTS[:1]) == first[:1] and len(calls) > ran


def asked_at_once(answers: Answers) -> tuple[list[str], list[TargetTokens], list[torch.Tensor]]:
    """Answers to some prompts, and targets of some; asked in one block."""
    with answers.at_once():
        assert answers.generate(PROMPTS[:7]) == [""] * 7
        answers.target_tokens(PAIRS[6:])
    return answers.generate(PROMPTS[:7]), answers.target_tokens(PAIRS[6:]), answers.target_logprobs(PAIRS[6:])


def same_as_apart(found: tuple[Any, ...], answers: Answers) -> None:
    said, tokens, logprobs = found
    assert said == answers.generate(PROMPTS[:7])
    assert tokens == answers.target_tokens(PAIRS[6:])
    for one, two in zip(logprobs, answers.target_logprobs(PAIRS[6:]), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_asked_at_once_prompts_are_read_once_to_the_same_answers(family: str) -> None:
    apart = answers_of(family, batch_tokens=1)
    for settings in ({}, {"batch_tokens": 150}, {"padding_side": "right"}):
        same_as_apart(asked_at_once(answers_of(family, **settings)), apart)
    answers = answers_of(family)
    with counted(answers._model.readers.own.model) as calls:
        with answers.at_once():
            answers.generate(PROMPTS[:1])
            answers.target_tokens(PAIRS[:3])
        ran = len(calls)
        assert ran > 0
        asked = answers.generate(PROMPTS[:1]), answers.target_tokens(PAIRS[:3]), answers.target_logprobs(PAIRS[:3])
        assert asked[0] == apart.generate(PROMPTS[:1]) and len(calls) == ran
        with answers.at_once():
            answers.generate(PROMPTS[:1])
            answers.generate(PROMPTS[:1], rule=WILD)  # known beside new
            answers.target_tokens([*PAIRS[:3], (PROMPTS[0], "a fourth")])
        assert len(calls) > ran
        assert answers.generate(PROMPTS[:1], rule=WILD) == apart.generate(PROMPTS[:1], rule=WILD)


def test_blocks_lie_in_one_another_and_an_error_ends_them() -> None:
    answers = answers_of("gpt2")
    with counted(answers._model.readers.own.model) as calls:
        with answers.at_once():
            with answers.at_once():
                answers.generate(PROMPTS)
            assert not calls and answers.generate(PROMPTS[:1]) == [""]
        assert calls
        ran = len(calls)
        with pytest.raises(ZeroDivisionError), answers.at_once():
            answers.target_tokens(PAIRS)
            raise ZeroDivisionError
        with answers.noting() as questions, answers.at_once():
            answers.target_tokens(PAIRS)
        assert len(questions.kinds) == 1 and len(calls) == ran
    assert answers.generate(PROMPTS) == answers_of("gpt2").generate(PROMPTS)


def test_prefetch_reads_all_that_the_metrics_ask(make_request) -> None:
    from kedit_core.evaluation import core_metrics

    requests = [make_request(n) for n in range(3)]
    base, edited = answers_of("gpt2", base=True), answers_of("gpt2")
    base.prefetch(requests, ["gen_free", "tf_token"])
    edited.prefetch(requests, ["generate", "tf_token"])
    with counted(base._model.readers.own.model) as of_base, counted(edited._model.readers.own.model) as of_edited:
        results = core_metrics(
            requests, base, edited, protocols=["gen_free", "tf_token"], scenario="batch", way="merged"
        )
        assert not of_base and not of_edited
    assert results["gen_free.locality"].value == 1.0 and results["tf_token.locality"].value == 1.0


def test_the_model_is_left_as_found() -> None:
    answers = answers_of("gpt2")
    model = answers._model.readers.own.model
    model.train()
    model.transformer.h[0].eval()
    state, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    first = answers.generate(PROMPTS[:3])
    answers.target_logprobs(PAIRS[:3])
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert answers_of("gpt2").generate(PROMPTS[:3]) == first  # dropout was off


def test_sampling_draws_from_its_own_generator_and_is_not_kept() -> None:
    answers = answers_of("gpt2")

    def sampled(seed: int) -> list[str]:
        return answers.raw_generate(PROMPTS[:3], 8, sampler=TopK(5, torch.Generator().manual_seed(seed)))

    assert sampled(1) == sampled(1) != sampled(2)


def test_odd_input_is_refused_in_words() -> None:
    answers = answers_of("gpt2")
    assert answers.generate([]) == [] and answers.target_tokens([]) == []
    with pytest.raises(InputError, match="prompt is empty"):
        answers.generate([""])
    with pytest.raises(InputError, match="target is empty"):
        answers.target_logprobs([("x", " ")])


HOPS = "New fact: it is Oslo. "


class ByLength(RouterKind):
    """Leaves prompts as they are, puts a sentence before them, or sends them to another model, by their length."""

    def route(self, prompts: Sequence[str]) -> list[Route]:
        elsewhere = RoutedModel(*tiny("gpt2"))
        kinds = {0: Route(), 1: Route(context=HOPS), 2: Route(model=elsewhere)}
        return [kinds[len(prompt) % 3] for prompt in prompts]


def stacked() -> tuple[PatchStack, Answers, Answers]:
    model, tokenizer = tiny("llama")
    view = AdapterRegistry(ADAPTERS).for_model(model)
    stack = PatchStack.of(model, kinds={"test.by_length": ByLength}, view=view)
    base = Answers(model, view, TokenBoundary(tokenizer), stack, base=True)
    return stack, base, Answers(model, view, TokenBoundary(tokenizer), stack)


def stacked_reader(stack: PatchStack) -> Answers:
    """Another reader of the same model, which knows nothing yet."""
    view = AdapterRegistry(ADAPTERS).for_model(stack.model)
    return Answers(stack.model, view, TokenBoundary(tiny("llama")[1]), stack)


def patch_of(stack: PatchStack, *operations) -> EditPatch:
    method = {"name": "by_hand", "distribution": "tests", "version": "1"}
    return EditPatch.build(method=method, base=stack.base_of(operations), operations=operations)


def rank_one(seed: int) -> LowRankDelta:
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(32, 1, generator=generator), torch.randn(1, 80, generator=generator)
    return LowRankDelta("model.layers.1.mlp.down_proj.weight", left, right)


def test_base_answers_can_be_had_at_any_time_and_edited_ones_are_never_stale() -> None:
    stack, base, edited = stacked()
    clean, scores = answers_of("llama").raw_generate(PROMPTS, 8), answers_of("llama").target_logprobs(PAIRS)
    one, two = patch_of(stack, rank_one(1)), patch_of(stack, rank_one(2))
    assert edited.raw_generate(PROMPTS, 8) == clean
    stack.apply(one)
    changed = edited.raw_generate(PROMPTS, 8)
    assert base.raw_generate(PROMPTS, 8) == clean != changed
    stack.apply(two, way="attached")
    both = edited.raw_generate(PROMPTS, 8)
    assert len({tuple(clean), tuple(changed), tuple(both)}) == 3
    assert all(torch.equal(a, b) for a, b in zip(base.target_logprobs(PAIRS), scores, strict=True))
    with stack.suspended():
        assert edited.raw_generate(PROMPTS, 8) == clean == base.raw_generate(PROMPTS, 8)
    stack.remove(two)
    assert edited.raw_generate(PROMPTS, 8) == changed
    stack.clear()
    assert edited.raw_generate(PROMPTS, 8) == clean


def test_an_error_while_reading_the_base_leaves_the_patches_on() -> None:
    stack, base, edited = stacked()
    stack.apply(patch_of(stack, rank_one(1)))
    changed = edited.raw_generate(PROMPTS[:2], 8)
    with pytest.raises(InputError):
        base.generate([PROMPTS[0], ""])
    stack.check()
    edited.forget()
    assert edited.raw_generate(PROMPTS[:2], 8) == changed


def test_routes_put_context_before_a_prompt_and_choose_the_model() -> None:
    stack, base, edited = stacked()
    stack.apply(patch_of(stack, RouterOperation("test.by_length")))
    plain, gpt = answers_of("llama"), answers_of("gpt2")
    assert {len(prompt) % 3 for prompt in PROMPTS} == {0, 1, 2}
    for prompt, said in zip(PROMPTS, edited.raw_generate(PROMPTS, 8), strict=True):
        route = len(prompt) % 3
        wanted = gpt if route == 2 else plain
        assert [said] == wanted.raw_generate([HOPS * (route == 1) + prompt], 8)
    for (prompt, target), tokens in zip(PAIRS, edited.target_tokens(PAIRS), strict=True):
        route = len(prompt) % 3
        wanted = gpt if route == 2 else plain
        assert [tokens] == wanted.target_tokens([(HOPS * (route == 1) + prompt, target)])
    assert base.raw_generate(PROMPTS, 8) == plain.raw_generate(PROMPTS, 8)
    same_as_apart(asked_at_once(stacked_reader(stack)), edited)
    same_as_apart(asked_at_once(base), plain)


# ------------------------------------------------------------------ samples and bounded writing
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sample_follows_from_its_prompt_and_seed_alone(family: str) -> None:
    answers = answers_of(family)
    room = 40 + max(len(answers._model.readers.own.boundary.prompt(text).ids) for text in PROMPTS)
    found = answers.sample(PROMPTS, total_tokens=room, k=3, seed=5)
    other = answers_of(family, batch_tokens=60)
    assert other.sample(PROMPTS[::-1], total_tokens=room, k=3, seed=5) == found[::-1]
    assert answers.sample(PROMPTS, total_tokens=room, k=3, seed=6) != found
    greedy = answers.raw_generate(PROMPTS[:1], room, ignore_eos=True)
    assert greedy[0].startswith(answers.sample(PROMPTS[:1], total_tokens=room, k=1)[0][:20])


def test_a_sample_and_its_prompt_have_the_length_asked_for() -> None:
    answers = answers_of("gpt2")
    boundary = answers._model.readers.own.boundary
    seen: list[int] = []
    real = boundary.continuation

    def counting(before, new, *rest):
        seen.append(len(before) + len(new))
        return real(before, new, *rest)

    boundary.continuation = counting  # type: ignore[method-assign]
    answers.sample(PROMPTS, total_tokens=30)
    assert set(seen) == {max(30, len(boundary.prompt(text).ids)) for text in PROMPTS}


@pytest.mark.parametrize("family", FAMILIES)
def test_written_tokens_are_those_of_greedy_decoding(family: str) -> None:
    """As many as the target has, in its context; equal to the fed argmax up to the first wrong one."""
    answers = answers_of(family)
    for written, fed, (prompt, target) in zip(
        answers.written_tokens(PAIRS), answers.target_tokens(PAIRS), PAIRS, strict=True
    ):
        assert written.target == fed.target and len(written.predicted) == len(written.target), (prompt, target)
        right = next(
            (i for i, (a, b) in enumerate(zip(fed.predicted, fed.target, strict=True)) if a != b), len(fed.target) - 1
        )
        assert written.predicted[: right + 1] == fed.predicted[: right + 1]
    assert answers_of(family, batch_tokens=1).written_tokens(PAIRS[::-1]) == answers.written_tokens(PAIRS)[::-1]
