"""Several texts in one row against one text in each."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kedit_core.forward import ForwardTools, Site, TokenBoundary, pack, packed_rows
from kedit_core.models import AdapterRegistry
from kedit_core.models.builtin import plugin
from kedit_core.testing.tiny import FAMILIES, tiny

# ALiBi, positions counted from the mask, relative positions in an encoder: these cannot tell packed texts apart
UNPACKED = {"bloom", "mpt", "opt", "t5", "t5_gated"}


def tools_of(family: str) -> ForwardTools:
    model, tokenizer = tiny(family)
    view = AdapterRegistry(plugin.register_adapters()).for_model(model)
    return ForwardTools(model, view, TokenBoundary(tokenizer, encoder_decoder=view.is_encoder_decoder))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_packed_texts_do_not_see_one_another(family: str) -> None:
    tools = tools_of(family)
    texts = [[5, 9, 11, 3], [7, 7], [13, 2, 4, 6, 8, 10], [21]]
    rows = [[2, 1], [0, 3]]
    site = Site(tools.view.num_layers - 1, "mlp_out", "input")
    if not tools.packs:
        assert family in UNPACKED
        return
    found = tools.run(pack(texts, rows, tools.boundary.pad_id), capture=[site]).activations[site]
    for i, row in enumerate(rows):
        start = 0
        for number in row:
            alone = tools.run(tools.batch([texts[number]]), capture=[site]).activations[site][0]
            got = found[i, start : start + len(texts[number])]
            assert torch.allclose(got, alone, rtol=0, atol=1e-5)
            start += len(texts[number])


def test_a_model_that_sees_across_is_found_out() -> None:
    tools = tools_of("gpt2")
    original = type(tools).inputs

    class Careless(ForwardTools):
        def inputs(self, batch):  # type: ignore[no-untyped-def]
            named = original(self, batch)
            named.pop("position_ids")
            return named

    careless = Careless(tools.model, tools.view, tools.boundary)
    assert tools.packs
    assert not careless.packs


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 64))
def test_every_text_is_in_one_row_that_has_room(lengths: list[int], capacity: int) -> None:
    rows = packed_rows(lengths, capacity)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    for row in rows:
        assert sum(lengths[number] for number in row) <= capacity or len(row) == 1


def test_the_filling_is_no_token() -> None:
    batch = pack([[1, 2], [3], [4, 5, 6, 7]], [[0, 1], [2]], 0)
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 0], [0, 1, 2, 3]]
    assert batch.packed
    assert batch.to("cpu").packed
