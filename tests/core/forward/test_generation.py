"""Generation and scoring: as transformers does it row by row, whatever the batch, the order and the padding side."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from generation_tools import TEXTS, each_case, setting
from hypothesis import given, settings
from hypothesis import strategies as st

from kedit_core.errors import InputError
from kedit_core.forward import Pair, PromptScope, TokenBoundary, TopK, end_ids, generate_ids, score_pairs
from kedit_core.models import AdapterRegistry
from kedit_core.models.builtin import ADAPTERS
from kedit_core.testing.tiny import tiny


def one_by_one(kit: Any, rows: Any, new: int) -> list[list[int]]:
    """transformers' own greedy decoding, a prompt at a time."""
    out = []
    for row in rows:
        ids = torch.tensor([row])
        whole = kit.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=kit.boundary.pad_id,
        )
        made = whole[0, 1 if kit.view.is_encoder_decoder else len(row) :].tolist()
        out.append([i for i in made if i not in end_ids(kit.model)])
    return out


def generate(kit: Any, rows: Any, new: int, **more: Any) -> list[list[int]]:
    return generate_ids(kit.model, kit.view, kit.boundary, rows, new, **more)


@each_case
@pytest.mark.parametrize("side", ["left", "right"])
def test_greedy_is_what_transformers_gives_for_each_prompt_alone(make_kit: Any, case: str, side: Any) -> None:
    kit = setting(make_kit, case)
    rows = kit.rows(*TEXTS)
    want = one_by_one(kit, rows, 8)
    assert generate(kit, rows, 8, padding_side=side) == want
    assert generate(kit, rows[::-1], 8, padding_side=side, batch_tokens=45) == want[::-1]
    assert generate(kit, rows, 8, padding_side=side, batch_tokens=1) == want


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "opt", "llama", "gemma2", "t5"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_that_end_leave_and_the_others_are_not_touched(make_kit: Any, family: str, side: Any) -> None:
    kit = make_kit(family)
    rows = kit.rows(*TEXTS)
    whole = one_by_one(kit, rows, 8)
    widths: list[int] = []
    handle = kit.view.head_blocks[0].register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[0]))
    told: list[str] = []

    def stop(text: str) -> bool:
        told.append(text)
        return len(text) > 12

    try:
        got = generate(kit, rows, 8, stop=stop, padding_side=side)
    finally:
        handle.remove()
    for row, mine, full in zip(rows, got, whole, strict=True):
        assert mine == full[: len(mine)]
        text = kit.boundary.continuation(row, mine)
        assert len(text) > 12 or mine == full
        assert len(kit.boundary.continuation(row, mine[:-1])) <= 12
        assert text in told
    assert widths[0] == len(rows) and widths[-1] < len(rows)


def test_end_of_sequence_ends_a_row_and_is_left_out() -> None:
    model, tokenizer = tiny("llama")
    view, boundary = AdapterRegistry(ADAPTERS).for_model(model), TokenBoundary(tokenizer)
    rows = [boundary.prompt(text).ids for text in TEXTS]
    free = generate_ids(model, view, boundary, rows, 6, ignore_eos=True)
    assert all(len(ids) == 6 for ids in free)
    end = free[0][3]
    model.generation_config.eos_token_id = [end, 999]
    assert end_ids(model) == {end, 999}
    got = generate_ids(model, view, boundary, rows, 6)
    for mine, full in zip(got, free, strict=True):
        assert mine == (full[: full.index(end)] if end in full else full)
    assert generate_ids(model, view, boundary, rows, 6, ignore_eos=True) == free
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = end
    assert end_ids(model) == {end}


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_sampling_takes_its_own_generator_only_and_does_not_depend_on_batches(make_kit: Any, family: str) -> None:
    """(``make_kit`` checks that the global random state is not used.)"""
    kit = make_kit(family)
    rows = kit.rows(*TEXTS)

    def sample(seed: int, k: int = 5, **more: Any) -> list[list[int]]:
        sampler = TopK(k, torch.Generator().manual_seed(seed))
        return generate(kit, rows, 6, sampler=sampler, ignore_eos=True, **more)

    assert sample(0) == sample(0, batch_tokens=1) == sample(0, batch_tokens=60, padding_side="right")
    assert sample(0) != sample(1)
    assert sample(3, k=1) == generate(kit, rows, 6, ignore_eos=True)
    generator = torch.Generator().manual_seed(0)
    first = generate(kit, rows, 6, sampler=TopK(5, generator), ignore_eos=True)
    assert generate(kit, rows, 6, sampler=TopK(5, generator), ignore_eos=True) != first


def test_top_k_shares(make_kit: Any) -> None:
    """Only the k likeliest are drawn, as often as their renormalised probabilities say."""
    kit = make_kit("gpt2")
    row = kit.rows("The capital of")[0]
    sampler = TopK(3, torch.Generator().manual_seed(0))
    drawn = [ids[0] for ids in generate(kit, [row] * 600, 1, sampler=sampler, ignore_eos=True)]
    with torch.no_grad():
        logits = kit.model(torch.tensor([row])).logits[0, -1]
    top = logits.topk(3)
    for token, share in zip(top.indices.tolist(), torch.softmax(top.values, 0).tolist(), strict=True):
        assert drawn.count(token) / 600 == pytest.approx(share, abs=0.07)
    assert set(drawn) <= set(top.indices.tolist())


def test_prompts_that_are_refused(make_kit: Any) -> None:
    kit = make_kit("gpt2")
    with pytest.raises(InputError, match="at least one token"):
        generate(kit, [[]], 3)
    with pytest.raises(InputError, match="128 positions"):
        generate(kit, [[5] * 129], 9)
    assert generate(kit, [], 3) == []
    assert generate(kit, [[5]], 0) == [[]]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "llama"])
def test_a_row_ends_where_the_positions_do(make_kit: Any, family: str) -> None:
    kit = make_kit(family)
    rows = [[5, 6, 7] * 41, [8] * 128, [9] * 10, [10, 11, 12] * 41]
    got = generate(kit, rows, 20, ignore_eos=True)
    assert [len(ids) for ids in got] == [6, 1, 20, 6]
    assert [generate(kit, [row], 20, ignore_eos=True)[0] for row in rows] == got


# ------------------------------------------------------------------ scoring
PAIRS = (
    ("The capital of Arvania is", "Port Lumen"),
    ("Mira Taldon was born in the city of", "Eskel"),
    ("Who wrote the book The Glass Orchard? It was written by", "Lena Ostrava in 1874"),
    ("The river", "Sorrel"),
)


@each_case
def test_scores_are_those_of_each_pair_alone(make_kit: Any, case: str) -> None:
    kit = setting(make_kit, case)
    want = []
    for prompt, target in PAIRS:
        pair = kit.boundary.pair(prompt, target)
        with torch.no_grad():
            if kit.view.is_encoder_decoder:
                fed = torch.tensor([[0, *pair.target_ids[:-1]]])
                logits = kit.model(input_ids=torch.tensor([pair.prompt_ids]), decoder_input_ids=fed).logits[0]
            else:
                ids = torch.tensor([pair.prompt_ids + pair.target_ids])
                logits = kit.model(ids).logits[0, len(pair.prompt_ids) - 1 : -1]
        logprobs = torch.log_softmax(logits.float(), -1)
        want.append((logprobs[range(len(pair.target_ids)), pair.target_ids], logits.argmax(-1), pair.target_ids))
    for more in ({}, {"padding_side": "left"}, {"batch_tokens": 1}, {"batch_tokens": 40}):
        got = score_pairs(kit.model, kit.view, kit.boundary, PAIRS, **more)  # type: ignore[arg-type]
        for score, (logprobs, predicted, ids) in zip(got, want, strict=True):
            torch.testing.assert_close(score.logprobs, logprobs, rtol=1e-4, atol=1e-4)
            assert score.logprobs.dtype == torch.float32
            assert score.predicted.tolist() == predicted.tolist()
            assert score.target_ids == ids


def test_scoring_takes_pairs_of_ids_and_keeps_their_order(make_kit: Any) -> None:
    kit = make_kit("gpt2")
    pairs = [kit.boundary.pair(*pair) for pair in PAIRS]
    texts = score_pairs(kit.model, kit.view, kit.boundary, PAIRS)
    ids = score_pairs(kit.model, kit.view, kit.boundary, pairs[::-1])[::-1]
    for a, b in zip(texts, ids, strict=True):
        torch.testing.assert_close(a.logprobs, b.logprobs, rtol=1e-5, atol=1e-5)
    assert score_pairs(kit.model, kit.view, kit.boundary, []) == []
    with pytest.raises(InputError, match="128 positions"):
        score_pairs(kit.model, kit.view, kit.boundary, [Pair((5,) * 128, (6, 7))])


def test_half_precision_scores_are_float32(make_kit: Any) -> None:
    kit = make_kit("llama", torch.bfloat16)
    score = score_pairs(kit.model, kit.view, kit.boundary, PAIRS[:1])[0]
    assert score.logprobs.dtype == torch.float32
    assert float(score.logprobs.exp().max()) <= 1


@functools.cache
def plain() -> Any:
    """(hypothesis does not go with fixtures)"""
    model, tokenizer = tiny("llama")
    return model, AdapterRegistry(ADAPTERS).for_model(model), TokenBoundary(tokenizer)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_batch_gives_the_same_answers(data: Any) -> None:
    model, view, boundary = plain()
    pool = [boundary.prompt(text).ids for text in TEXTS]
    chosen = data.draw(st.lists(st.sampled_from(range(len(pool))), min_size=1, max_size=6))
    side = data.draw(st.sampled_from(["left", "right"]))
    tokens = data.draw(st.integers(1, 200))
    alone = [generate_ids(model, view, boundary, [row], 4)[0] for row in pool]
    got = generate_ids(model, view, boundary, [pool[i] for i in chosen], 4, batch_tokens=tokens, padding_side=side)
    assert got == [alone[i] for i in chosen]


def test_the_scope_is_told(make_kit: Any) -> None:
    kit = make_kit("gpt2")
    scope = PromptScope()
    seen: list[tuple[str, Any]] = []

    def watch(*_: Any) -> None:
        seen.append((scope.phase, scope.prompt_ends.tolist() if scope.phase == "prefill" else scope.rows))

    rows = kit.rows("The river Sorrel", "Mira")
    handle = kit.view.block(0).register_forward_pre_hook(watch)
    try:
        ids = generate(kit, rows, 3, scope=scope, ignore_eos=True)
        width = max(map(len, rows))
        assert seen == [("prefill", [width - 1] * 2), ("decode", 2), ("decode", 2)]
        seen.clear()
        generate(kit, rows, 3, scope=scope, padding_side="right", ignore_eos=True)
        assert sorted(seen[0][1]) == sorted(len(row) - 1 for row in rows)
        seen.clear()
        pairs = [Pair(rows[0], tuple(ids[0])), Pair(rows[1], tuple(ids[1]))]
        score_pairs(kit.model, kit.view, kit.boundary, pairs, scope=scope)
        assert [phase for phase, _ in seen] == ["prefill"]
        assert sorted(seen[0][1]) == sorted(len(row) - 1 for row in rows)
    finally:
        handle.remove()
    assert not scope.active
