"""A prompt read once for its targets and its continuation: what reading apart gives, in any batch, on any side."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from generation_tools import TEXTS, each_case, setting
from hypothesis import given, settings
from hypothesis import strategies as st

from kedit_core.errors import InputError
from kedit_core.forward import Asked, Found, Pair, PromptScope, TokenBoundary, generate_ids, read_prompts, score_pairs
from kedit_core.models import AdapterRegistry
from kedit_core.models.builtin import ADAPTERS
from kedit_core.testing.tiny import tiny

NEW = 7
TARGETS = ("Port Lumen", "Eskel in the north", "I")


def read(kit: Any, asked: Sequence[Asked], new: int = NEW, **more: Any) -> list[Found]:
    return read_prompts(kit.model, kit.view, kit.boundary, asked, new, **more)


def apart(kit: Any, asked: Sequence[Asked], new: int = NEW, stop: Any = None) -> list[tuple[list[Any], list[int]]]:
    """Everything by itself: a pass for each target, and one prompt at a time written on."""
    found = []
    for one in asked:
        pairs = [Pair(one.prompt, target) for target in one.targets]
        scores = score_pairs(kit.model, kit.view, kit.boundary, pairs, batch_tokens=1)
        written = generate_ids(kit.model, kit.view, kit.boundary, [one.prompt], new, stop=stop) if one.writes else [[]]
        found.append((scores, written[0]))
    return found


def same(found: Sequence[Found], wanted: Sequence[tuple[list[Any], list[int]]]) -> None:
    assert [one.new for one in found] == [new for _, new in wanted]
    for one, (scores, _) in zip(found, wanted, strict=True):
        assert len(one.scores) == len(scores)
        for mine, score in zip(one.scores, scores, strict=True):
            torch.testing.assert_close(mine.logprobs, score.logprobs, rtol=1e-5, atol=1e-5)
            assert mine.logprobs.dtype == torch.float32
            assert mine.predicted.tolist() == score.predicted.tolist()
            assert mine.target_ids == score.target_ids


def questions(kit: Any) -> list[Asked]:
    """Every kind of question: no target and several; drafts that are the answer, begin like it, and are wrong."""
    rows = [tuple(row) for row in kit.rows(*TEXTS)]
    targets = tuple(kit.boundary.pair(TEXTS[0], text).target_ids for text in TARGETS)
    answers = [tuple(ids) for ids in generate_ids(kit.model, kit.view, kit.boundary, rows, NEW + 3, ignore_eos=True)]
    other = (answers[1][3] + 1) % kit.model.config.vocab_size
    return [
        Asked(rows[0], (answers[0],), True),  # longer than what may be written
        Asked(rows[1], ((*answers[1][:3], other, *targets[0]), targets[1]), True),
        Asked(rows[2], targets, True),
        Asked(rows[3], targets),
        Asked(rows[4], (), True),
        Asked(rows[4], (answers[4][:2], answers[4][:1], targets[0]), True),
        Asked(rows[0], (targets[1],)),
        Asked(rows[0], (answers[0][:4], targets[0], targets[0]), True),
    ]


@contextmanager
def calls(kit: Any) -> Iterator[list[tuple[int, int, int]]]:
    """(rows, columns fed, columns held before) of each call of the blocks that read the prompt."""
    seen: list[tuple[int, int, int]] = []

    def watch(_: Any, args: Any, named: dict[str, Any]) -> None:
        cache = named.get("past_key_values")
        rows, columns = named["input_ids"].shape
        seen.append((rows, columns, 0 if cache is None else cache.get_seq_length()))

    handle = kit.model.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@each_case
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_same_as_apart(make_kit: Any, case: str, side: Any) -> None:
    kit = setting(make_kit, case)
    asked = questions(kit)
    wanted = apart(kit, asked)
    same(read(kit, asked, padding_side=side), wanted)
    same(read(kit, asked[::-1], padding_side=side, batch_tokens=120), wanted[::-1])
    same(read(kit, asked, padding_side=side, batch_tokens=1), wanted)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "llama", "t5"])
def test_rows_stop_where_they_do_apart(make_kit: Any, family: str) -> None:
    kit = make_kit(family)
    asked = questions(kit)
    for length in (2, 6, 14):

        def stop(text: str, length: int = length) -> bool:
            return len(text) > length

        same(read(kit, asked, stop=stop), apart(kit, asked, stop=stop))


def test_an_end_of_sequence_in_the_draft_ends_the_row() -> None:
    model, tokenizer = tiny("llama")
    kit = make(model, tokenizer)
    row = tuple(kit.boundary.prompt(TEXTS[0]).ids)
    (free,) = generate_ids(model, kit.view, kit.boundary, [row], 6, ignore_eos=True)
    model.generation_config.eos_token_id = free[2]
    asked = [Asked(row, (tuple(free),), True), Asked(row, (), True)]
    found = read(kit, asked)
    assert [one.new for one in found] == [free[: free.index(free[2])]] * 2
    same(found, apart(kit, asked))


def test_each_prompt_is_fed_once_and_a_draft_that_is_the_answer_takes_no_step(make_kit: Any) -> None:
    kit = make_kit("llama")
    row = tuple(kit.rows(TEXTS[2])[0])
    (answer,) = generate_ids(kit.model, kit.view, kit.boundary, [row], 5, ignore_eos=True)
    wrong = tuple((token + 1) % kit.model.config.vocab_size for token in answer)
    with calls(kit) as seen:
        (found,) = read(kit, [Asked(row, (tuple(answer),), True)], 6)
        assert found.new[:5] == answer and seen == [(1, len(row) + 5, 0)]
        seen.clear()
        read(kit, [Asked(row, (tuple(answer[:2]),), True)], 5)
        assert seen == [(1, len(row) + 2, 0), *((1, 1, len(row) + held) for held in (2, 3))]
        seen.clear()
        read(kit, [Asked(row, (wrong, tuple(answer), wrong[:1]), True)], 3)
        # the prompt with its first target; the second one's tokens after it; then what is written
        assert seen == [(1, len(row) + 5, 0), (1, 4, len(row)), (1, 1, len(row)), (1, 1, len(row) + 1)]


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_batches_keep_to_their_tokens(make_kit: Any, family: str) -> None:
    """Rows of further targets and new tokens count."""
    kit = make_kit(family)
    asked = questions(kit) * 3
    for budget in (100, 300):
        sizes: list[int] = []

        def watch(_: Any, args: Any, named: dict[str, Any], sizes: list[int] = sizes) -> None:
            cache, fed = named.get("past_key_values"), named.get("decoder_input_ids", named.get("input_ids"))
            encoded = named.get("encoder_outputs")
            held = 0 if cache is None else cache.get_seq_length()
            read = 0 if encoded is None else encoded.last_hidden_state.shape[1]
            sizes.append(fed.shape[0] * (fed.shape[1] + held + read))

        handle = kit.model.register_forward_pre_hook(watch, with_kwargs=True)
        try:
            read(kit, asked, batch_tokens=budget)
        finally:
            handle.remove()
        assert max(sizes) <= budget and len(sizes) > 2
        assert max(sizes) > budget // 3, "the batches are no smaller than they must be"


def test_prompts_are_read_apart_while_operations_follow_their_phases(make_kit: Any) -> None:
    kit = make_kit("gpt2")
    asked = questions(kit)
    wanted = apart(kit, asked)
    scope = PromptScope()
    phases: list[tuple[str, Any]] = []

    def watch(*_: Any) -> None:
        ends = scope.prompt_ends.tolist() if scope.phase == "prefill" else None
        phases.append((scope.phase, ends))

    handle = kit.view.block(0).register_forward_pre_hook(watch)
    try:
        scope.attach(kit.model, kit.view)
        assert scope.watching
        same(read(kit, asked, scope=scope), wanted)
        assert all(min(ends) >= 0 for phase, ends in phases if phase == "prefill"), "prompts are read whole"
        scope.detach()
        phases.clear()
        same(read(kit, asked, scope=scope), wanted)
        assert {phase for phase, _ in phases} == {"prefill", "decode"}
    finally:
        scope.detach()
        handle.remove()
    assert not scope.active


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_the_scope_is_told_which_text_each_row_is(make_kit: Any, family: str, watched: bool) -> None:
    kit = make_kit(family)
    asked, scope = questions(kit), PromptScope()
    members = [10 + number for number in range(len(asked))]
    seen: set[int] = set()

    def watch(_: Any, args: Any, output: Any) -> None:
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        told = scope.members
        assert told is not None and told.shape[0] == hidden.shape[0] == scope.rows
        seen.update(told.tolist())

    handle = kit.view.block(0).register_forward_hook(watch)
    try:
        if watched:
            scope.attach(kit.model, kit.view)
        read(kit, asked, scope=scope, members=members)
    finally:
        scope.detach()
        handle.remove()
    assert seen == set(members)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_where_positions_are_scarce_prompts_are_read_apart(make_kit: Any, family: str) -> None:
    kit = make_kit(family)
    short, long = (9,) * 10, (5, 6, 7) * 41  # of 128 positions
    target = (11, 12, 13)
    asked = [Asked(long, (target,), True), Asked(short, (target,), True), Asked(long, (target, target[:1]))]
    found = read(kit, asked, 20)
    same(found, apart(kit, asked, 20))
    assert len(found[0].new) <= 6
    with pytest.raises(InputError, match="128 positions"):
        read(kit, [Asked((5,) * 128, (target,), True)], 20)


@pytest.mark.parametrize("family", ["gpt_neo", "llama"])
def test_rows_of_one_batch_never_run_out_of_columns(make_kit: Any, family: str) -> None:
    kit = make_kit(family)  # of 128 positions; what is added to a short row stands beside a long one
    far = [Asked((5,) * 120, ((7,), (8,) * 6)), Asked((6,) * 90, ((7,), (8,) * 30))]
    same(read(kit, far, 0), apart(kit, far, 0))
    (draft,) = generate_ids(kit.model, kit.view, kit.boundary, [(5,) * 116], 12, ignore_eos=True)
    drafted = [Asked((5,) * 116, (tuple(draft[:8]),), True), Asked((6,) * 90, ((9,),), True)]
    same(read(kit, drafted, 12), apart(kit, drafted, 12))


def test_what_is_refused_or_asks_nothing(make_kit: Any) -> None:
    kit = make_kit("gpt2")
    with pytest.raises(InputError, match="at least one token"):
        read(kit, [Asked((), (), True)])
    assert read(kit, []) == []
    (nothing, none_new) = read(kit, [Asked((5,)), Asked((5,), ((6,),), True)], 0)
    assert (nothing.scores, nothing.new, none_new.new) == ((), [], []) and len(none_new.scores) == 1


class _Plain:
    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.view = AdapterRegistry(ADAPTERS).for_model(model)
        self.boundary = TokenBoundary(tokenizer, self.view.is_encoder_decoder)

    def rows(self, *texts: str) -> list[tuple[int, ...]]:
        return [self.boundary.prompt(text).ids for text in texts]


make = _Plain


@functools.cache
def prepared(family: str) -> tuple[Any, list[Asked], list[Any]]:
    """(hypothesis does not go with fixtures)"""
    kit = make(*tiny(family))
    asked = questions(kit)
    return kit, asked, apart(kit, asked)


@pytest.mark.parametrize("family", ["gpt_neo", "llama", "opt", "t5"])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_any_batch_gives_the_same(family: str, data: Any) -> None:
    kit, asked, wanted = prepared(family)
    chosen = data.draw(st.lists(st.sampled_from(range(len(asked))), min_size=1, max_size=6))
    side = data.draw(st.sampled_from(["left", "right"]))
    tokens = data.draw(st.integers(1, 400))
    found = read(kit, [asked[i] for i in chosen], batch_tokens=tokens, padding_side=side)
    same(found, [wanted[i] for i in chosen])
