"""Tails that are written at other parts than the MLP, or read after other blocks than the last."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from tail_tools import CASES, TEXTS, compare, problem, setting

from kedit_core.errors import InputError
from kedit_core.forward import cells

pytestmark = pytest.mark.slow

each_case = pytest.mark.parametrize("case", CASES)
both_paths = pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])


# where a vector may be written, alone and together
PARTS = (("block",), ("attn_out",), ("mlp_out", "attn_out"), ("block", "mlp", "attn_out"))
each_parts = pytest.mark.parametrize("parts", PARTS, ids="+".join)


@each_case
@both_paths
@each_parts
def test_other_parts_in_float32(make_kit: Any, case: str, fast: bool, parts: tuple[str, ...]) -> None:
    kit = setting(make_kit, case)
    batch, positions, where = problem(kit, "left" if fast else "right")
    for layer in (0, kit.view.num_layers - 1):
        tail = kit.tools(fast=fast).tail(batch, layer, positions, where, parts=parts)
        assert tail.fast is fast
        compare(kit, tail, batch, layer, positions, where, 3e-5, parts=parts)


@pytest.mark.parametrize("case", ["gpt2", "gpt_neox", "gpt_neox-sequential", "opt", "t5"])
@pytest.mark.parametrize("side", ["right", "left"])
@each_parts
def test_other_parts_in_float64(make_kit: Any, case: str, side: Any, parts: tuple[str, ...]) -> None:
    kit = setting(make_kit, case, torch.float64)
    batch, positions, where = problem(kit, side)
    tail = kit.tools().tail(batch, 1, positions, where, parts=parts)
    assert tail.fast
    compare(kit, tail, batch, 1, positions, where, 1e-10, parts=parts)


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("t5")])
@both_paths
def test_cells_are_read_after_the_block_asked_for(make_kit: Any, case: str, fast: bool) -> None:
    kit = setting(make_kit, case)
    batch, positions, where = problem(kit)
    last = kit.view.num_layers - 1
    for parts in (("block",), ("mlp_out", "attn_out")):
        for after in ([0, 1, 2, 0, 1, last, last], [1] * 7):
            tail = kit.tools(fast=fast).tail(batch, 0, positions, where, parts=parts, after=torch.tensor(after))
            assert tail.fast is fast
            compare(kit, tail, batch, 0, positions, where, 3e-5, parts=parts, after=after)


def test_reading_after_the_last_block_is_the_ordinary_logits(make_kit: Any) -> None:
    kit = make_kit("gemma2")  # its head has more than a norm and a projection
    batch, positions, where = problem(kit)
    delta = torch.ones(batch.rows, kit.view.hidden_size)
    last = torch.full((len(where),), kit.view.num_layers - 1)
    ordinary = kit.tools().tail(batch, 1, positions, where).logits(delta)
    torch.testing.assert_close(kit.tools().tail(batch, 1, positions, where, after=last).logits(delta), ordinary)


def test_cells_before_the_first_written_column_are_read_too(make_kit: Any) -> None:
    kit = make_kit("llama")
    batch = kit.tools().batch(kit.rows(TEXTS[0], TEXTS[0]))
    positions, where = batch.columns([4, 4]), cells([0, 1, 1], [1, 0, 6])
    tail = kit.tools().tail(batch, 1, positions, where)
    assert tail.fast
    compare(kit, tail, batch, 1, positions, where, 1e-5)


@both_paths
def test_groups_share_the_vectors_of_all_parts(make_kit: Any, fast: bool) -> None:
    kit = make_kit("gpt2", torch.float64)
    batch, positions, where = problem(kit)
    tail = kit.tools(fast=fast).tail(batch, 1, positions, where, parts=("mlp_out", "attn_out"))
    delta = torch.randn(2, 2, kit.view.hidden_size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    group = torch.tensor([1, 0, 1])
    torch.testing.assert_close(tail.logits(delta, group), tail.logits(delta[group]))
    swapped = tail.logits(delta.flip(1), group)
    assert float((swapped - tail.logits(delta, group)).abs().max()) > 1e-3  # the order is the plan's
    for wrong in (delta[:, 0], delta[:, :1], delta[..., :-1]):
        with pytest.raises(InputError, match=r"delta must be \[3, 2, 32\]"):
            tail.logits(wrong, group)


@pytest.mark.parametrize(
    ("case", "parts", "blocks"),
    [
        ("llama", ("block",), [2]),
        ("llama", ("mlp_out",), [2]),
        ("llama", ("mlp_out", "attn_out"), [1, 2]),
        ("gptj", ("mlp_out", "attn_out"), [2]),
        ("gpt_neox", ("attn_out",), [2]),
        ("gpt_neox-sequential", ("attn_out",), [1, 2]),
        ("gemma2", ("block",), [2, 3]),
        ("gemma2", ("mlp",), [1, 2, 3]),
    ],
)
def test_the_tail_begins_as_late_as_it_can(make_kit: Any, case: str, parts: tuple[str, ...], blocks: list[int]) -> None:
    kit = setting(make_kit, case)
    batch, positions, where = problem(kit)
    tail = kit.tools().tail(batch, 1, positions, where, parts=parts)
    assert tail.fast
    seen: list[int] = []
    handles = [
        kit.view.block(i).register_forward_pre_hook(lambda *_, i=i: seen.append(i)) for i in range(kit.view.num_layers)
    ]
    try:
        with torch.no_grad():
            tail.logits(torch.zeros(3, kit.view.hidden_size) if len(parts) == 1 else torch.zeros(3, 2, 32))
    finally:
        for handle in handles:
            handle.remove()
    assert seen == blocks


def test_a_false_claim_about_one_part_costs_only_its_fast_path(make_kit: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A view that calls a sequential block parallel: what is written into the attention must not be trusted."""
    from attrs import evolve

    from kedit_core.models import ModelView

    kit = make_kit("llama")
    odd = evolve(kit, view=ModelView(evolve(kit.view.adapter, parallel=True), kit.model))
    batch, positions, where = problem(odd)
    tools = odd.tools()
    assert tools.tail(batch, 1, positions, where).fast
    for parts in (("attn_out",), ("mlp_out", "attn_out")):
        with caplog.at_level(logging.WARNING, "kedit_core.forward"):
            tail = tools.tail(batch, 1, positions, where, parts=parts)
        assert not tail.fast
        assert "gives other logits" in caplog.text
        compare(kit, tail, batch, 1, positions, where, 1e-5, parts=parts)
    assert tools.tail(batch, 1, positions, where).fast


def test_parts_and_depths_that_are_not_there_are_refused(make_kit: Any) -> None:
    kit = make_kit("gpt2")
    batch, positions, where = problem(kit)
    for parts in ((), ("mlp", "mlp"), ("attn",), ("mlp_in",)):
        with pytest.raises(InputError, match="a tail's parts are"):
            kit.tools().tail(batch, 0, positions, where, parts=parts)
    for after in ([1], [0] * 7, [3] * 7):
        with pytest.raises(InputError, match="after must be one block from 1"):
            kit.tools().tail(batch, 1, positions, where, after=torch.tensor(after))
    t5 = make_kit("t5")
    batch, positions, where = problem(t5)
    with pytest.raises(InputError, match="encoder"):
        t5.tools().tail(batch, 0, positions, where, after=torch.ones(len(where)))
