"""Where prompts end: told by kedit's own runs, worked out for the model's own, refused where it cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from kedit_core.errors import ScopeError
from kedit_core.forward import PromptScope, collate, generate_ids
from kedit_core.forward.state import first_tensor, with_first

TEXTS = ("The river Sorrel flows through", "Mira Taldon", "The capital of")


class Codebook:
    """What a module operation does: decide at each prompt's last token, keep to it while the answer is written."""

    def __init__(self, scope: PromptScope, module: torch.nn.Module, vector: Tensor) -> None:
        self.scope = scope
        self.vector = vector
        self.calls: list[tuple[str, list[bool]]] = []
        self.handle = module.register_forward_hook(self)

    def __call__(self, _: Any, __: Any, output: Any) -> Any:
        x = self.scope.by_row(first_tensor(output))
        if self.scope.phase == "prefill":
            ends = self.scope.prompt_ends
            answer = x[torch.arange(x.shape[0]), ends][:, 0] > 0
            self.scope.put(self, answer)
        chosen = self.scope.get(self)
        self.calls.append((self.scope.phase, chosen.tolist()))
        where = self.scope.from_prompt_end(x.shape[1], x.device) & chosen.unsqueeze(1)
        x = x + where.unsqueeze(-1) * self.vector.to(x.dtype)
        return with_first(output, x.view_as(first_tensor(output)))


@pytest.fixture
def watched(make_kit: Any) -> Iterator[Any]:
    made: list[tuple[PromptScope, Codebook]] = []

    def make(family: str, layer: int = 1) -> tuple[Any, PromptScope, Codebook]:
        kit = make_kit(family)
        scope = PromptScope()
        scope.attach(kit.model, kit.view)
        vector = torch.randn(kit.view.hidden_size, generator=torch.Generator().manual_seed(3))
        book = Codebook(scope, kit.view.mlp(layer), vector)
        made.append((scope, book))
        return kit, scope, book

    yield make
    for scope, book in made:
        book.handle.remove()
        scope.detach()
        assert not scope.watching and not scope.active


def test_nothing_is_known_when_nothing_runs() -> None:
    scope = PromptScope()
    assert scope.phase == "idle" and not scope.active and scope.rows == 0
    for call in (
        scope.require,
        scope.decoding,
        lambda: scope.from_prompt_end(3),
        lambda: scope.put("a", torch.ones(1)),
    ):
        with pytest.raises(ScopeError, match="decides prompt by prompt"):
            call()
    with pytest.raises(ScopeError, match="prefill only"):
        _ = scope.prompt_ends


def test_a_told_run() -> None:
    scope = PromptScope()
    with scope.running(torch.tensor([1, 3])):
        assert scope.rows == 2
        assert scope.from_prompt_end(5).tolist() == [[False] + [True] * 4, [False] * 3 + [True] * 2]
        scope.put("op", {"a": torch.tensor([10, 20]), "b": (torch.eye(2), [torch.tensor([1, 2])])})
        assert scope.by_row(torch.ones(6, 4)).shape == (2, 3, 4)
        assert scope.by_row(torch.ones(2, 3, 4)).shape == (2, 3, 4)
        for shape in ((3, 4), (3, 3, 4)):
            with pytest.raises(ScopeError, match="not those of 2 rows"):
                scope.by_row(torch.ones(shape))
        for wrong in (torch.ones(3), torch.tensor(1.0), "text"):
            with pytest.raises(ScopeError, match="decision"):
                scope.put("op", wrong)
        scope.decoding()
        assert scope.from_prompt_end(1).tolist() == [[True], [True]]
        scope.select_rows(torch.tensor([1]))
        kept = scope.get("op")
        assert kept["a"].tolist() == [20] and kept["b"][0].tolist() == [[0, 1]] and kept["b"][1][0].tolist() == [2]
        assert scope.rows == 1
        with scope.running(torch.tensor([0])):  # a run inside another
            assert scope.phase == "prefill" and scope.get("op") is None
        assert scope.phase == "decode" and scope.get("op")["a"].tolist() == [20]
    assert not scope.active and scope.get("op", 7) == 7


def test_an_error_ends_a_told_run() -> None:
    scope = PromptScope()
    with pytest.raises(KeyError), scope.running(torch.tensor([1])):
        raise KeyError
    assert not scope.active


@pytest.mark.parametrize("family", ["gpt2", "gptj", "gpt_neo", "gpt_neox", "opt", "llama", "mistral", "gemma3", "t5"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_generation_with_an_operation_does_not_depend_on_the_batch(watched: Any, family: str, side: Any) -> None:
    """Rows leave at different times; decisions follow the rows that stay."""
    kit, scope, book = watched(family)
    rows = kit.rows(*TEXTS)

    def generate(chosen: Any, **more: Any) -> list[list[int]]:
        stop = lambda text: len(text) > 9  # noqa: E731
        return generate_ids(kit.model, kit.view, kit.boundary, chosen, 6, stop=stop, scope=scope, **more)

    alone = [generate([row])[0] for row in rows]
    assert generate(rows, padding_side=side) == alone
    phases = {phase for phase, _ in book.calls}
    assert phases == ({"prefill"} if family == "t5" else {"prefill", "decode"})


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "t5"])
def test_bare_generate_is_followed(watched: Any, family: str) -> None:
    kit, scope, book = watched(family)
    rows = kit.rows(*TEXTS)
    batch = collate(rows, kit.boundary.pad_id, "left")
    whole = kit.model.generate(
        batch.input_ids,
        attention_mask=batch.attention_mask,
        max_new_tokens=5,
        min_new_tokens=5,
        do_sample=False,
        pad_token_id=kit.boundary.pad_id,
    )
    bare = whole[:, 1 if kit.view.is_encoder_decoder else batch.width :].tolist()
    calls = list(book.calls)
    mine = generate_ids(kit.model, kit.view, kit.boundary, rows, 5, scope=scope)
    assert [ids[: len(m)] for ids, m in zip(bare, mine, strict=True)] == mine
    assert calls[0][0] == "prefill"
    assert {phase for phase, _ in calls[1:]} == (set() if family == "t5" else {"decode"})
    assert all(chosen == calls[0][1] for _, chosen in calls)
    with torch.no_grad():
        kit.model.generate(batch.input_ids[:1], max_new_tokens=2, do_sample=False, pad_token_id=kit.boundary.pad_id)
    assert scope.rows == 1  # the next prompt starts afresh


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_bare_call_ends_its_prompts_with_the_mask(watched: Any, side: Any) -> None:
    kit, scope, _ = watched("llama")
    batch = collate(kit.rows(*TEXTS), kit.boundary.pad_id, side)
    with torch.no_grad():
        kit.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        assert scope.prompt_ends.tolist() == batch.columns([-1, -1, -1]).tolist()
        kit.model(batch.input_ids[:, :4])
        assert scope.prompt_ends.tolist() == [3, 3, 3]
        kit.model(inputs_embeds=kit.view.embeddings(batch.input_ids[:, :3]))
        assert scope.prompt_ends.tolist() == [2, 2, 2]


def test_a_static_cache_is_followed(watched: Any) -> None:
    kit, _, book = watched("llama")
    rows = torch.tensor(kit.rows("The capital of"))
    cache = StaticCache(config=kit.model.config, max_cache_len=16)
    with torch.no_grad():
        kit.model(rows, past_key_values=cache)
        kit.model(rows[:, :1], past_key_values=cache)
        kit.model(rows[:, 1:2], past_key_values=cache)
    assert [phase for phase, _ in book.calls] == ["prefill", "decode", "decode"]


def filled(kit: Any, rows: Tensor) -> Any:
    cache = DynamicCache()
    with torch.no_grad():
        kit.model(rows, past_key_values=cache)
    return cache


def test_chunked_prefill_is_refused(watched: Any) -> None:
    kit, scope, _ = watched("gpt2")
    rows = torch.tensor(kit.rows("The capital of"))
    cache = filled(kit, rows)
    with pytest.raises(ScopeError, match="chunked prefill"):
        kit.model(rows[:, :2], past_key_values=cache)
    assert not scope.active


def test_a_cache_from_elsewhere_is_refused(watched: Any) -> None:
    kit, scope, book = watched("gpt2")
    rows = torch.tensor(kit.rows("The capital of"))
    scope.detach()
    book.handle.remove()
    cache = filled(kit, rows)
    scope.attach(kit.model, kit.view)
    with pytest.raises(ScopeError, match="filled when nothing was followed"):
        kit.model(rows[:, :1], past_key_values=cache)
    # one that belongs to another prompt
    filled(kit, rows[:, :2])
    with pytest.raises(ScopeError, match="cached ones"):
        kit.model(rows[:, :1], past_key_values=cache)


def test_other_rows_than_were_prompted_are_refused(watched: Any) -> None:
    kit, _, _ = watched("gpt2")
    rows = torch.tensor(kit.rows("The capital of"))
    cache = filled(kit, rows)
    cache.batch_repeat_interleave(2)
    with pytest.raises(ScopeError, match="2 rows follow a prompt of 1"):
        kit.model(rows[:, :1].repeat(2, 1), past_key_values=cache)


def test_rows_in_another_order_are_refused(watched: Any) -> None:
    kit, _, _ = watched("gpt2")
    rows = torch.tensor([[5, 6, 7], [8, 9, 10]])
    cache = filled(kit, rows)
    with torch.no_grad():
        kit.model(rows[:, :1], past_key_values=cache)
        cache.reorder_cache(torch.tensor([1, 0]))
        with pytest.raises(ScopeError, match="another order"):
            kit.model(rows[:, :1], past_key_values=cache)


def test_rows_swapped_right_after_the_prompt_are_refused(watched: Any) -> None:
    kit, _, _ = watched("gpt2")
    rows = torch.tensor([[5, 6, 7], [8, 9, 10]])
    cache = DynamicCache()
    with torch.no_grad():
        output = kit.model(rows, past_key_values=cache)
        output.past_key_values.reorder_cache(torch.tensor([1, 0]))
        with pytest.raises(ScopeError, match="another order"):
            kit.model(rows[:, :1], past_key_values=cache)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_beams_are_refused(watched: Any, family: str) -> None:
    kit, _, _ = watched(family)
    batch = collate(kit.rows(*TEXTS), kit.boundary.pad_id, "left")
    with pytest.raises(ScopeError, match="beams"):
        kit.model.generate(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            num_beams=4,
            max_new_tokens=12,
            min_new_tokens=12,
            do_sample=False,
            pad_token_id=kit.boundary.pad_id,
        )


def test_masks_that_tell_no_prompt_are_refused(watched: Any) -> None:
    kit, _, _ = watched("llama")
    with pytest.raises(ScopeError, match="attention mask"):
        kit.model(torch.ones(1, 3, dtype=torch.long), attention_mask=torch.zeros(1, 1, 3, 3))
    with pytest.raises(ScopeError, match="neither input_ids"):
        kit.model()


def test_forward_tools_tell_the_scope(watched: Any) -> None:
    kit, scope, _ = watched("gpt2")
    tools = kit.tools(scope=scope)
    rows = kit.rows(*TEXTS)
    batch = tools.batch(rows, prompt_lengths=[len(row) - 1 for row in rows])
    seen: list[list[int]] = []
    handle = kit.view.block(0).register_forward_pre_hook(lambda *_: seen.append(scope.prompt_ends.tolist()))
    try:
        tools.run(batch, stop_after=1)
    finally:
        handle.remove()
    assert seen == [batch.columns([-2, -2, -2]).tolist()]
