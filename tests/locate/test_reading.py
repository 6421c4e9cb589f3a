"""Keys and states read while layers are written: against whole passes, whatever the batches, padding and path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from locate_tools import MIRA, OREN, PARIS, TEMPLATES, spanned
from plain_spread import matrix_of
from torch import Tensor, nn

from kedit_core.forward import ForwardTools, Site, TokenBoundary
from kedit_core.models import AdapterRegistry
from kedit_core.models.builtin import plugin
from kedit_core.testing.tiny import tiny
from kedit_methods_locate.reading import Reader, key_weights
from kedit_methods_locate.rows import Rewrite, rewrite

FACTS = (PARIS, MIRA, OREN)
STATE = Site(2, "block", "output")
WEIGHTS = key_weights(len(TEMPLATES), "grouped")


def tools_of(family: str, dtype: torch.dtype = torch.float64, fast: bool = True) -> ForwardTools:
    model, tokenizer = tiny(family, dtype=dtype)
    view = AdapterRegistry(plugin.register_adapters()).for_model(model)
    return ForwardTools(model, view, TokenBoundary(tokenizer, view.is_encoder_decoder), fast=fast)


def rows_of(tools: ForwardTools, templates: Sequence[str] = TEMPLATES) -> list[Rewrite]:
    return [rewrite(tools.boundary, spanned(fact), templates) for fact in FACTS]


def written(tools: ForwardTools, layer: int) -> None:
    """Something in place of an update of a layer's MLP."""
    weight = matrix_of(tools.view.mlp_out(layer))
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(layer), dtype=torch.float64)
    with torch.no_grad():
        weight.add_(noise.to(weight.dtype), alpha=0.3)


def all_turns(tools: ForwardTools, **how: Any) -> list[dict[Site, Tensor]]:
    """What an edit of layers 0 and 2 reads."""
    reader = Reader(tools, rows_of(tools), 0, 2, WEIGHTS, **how)
    read = []
    for layer in (0, 2):
        read.append(reader.read([Site(layer, "mlp_out", "input"), Site(layer, "attn_out", "input")], [STATE]))
        written(tools, layer)
        if layer == 0:
            reader.advance()
            reader.advance()
    sites = [Site(layer, "mlp_out", "input") for layer in (0, 2)]
    return [*read, reader.read([], [STATE]), reader.keys_now(sites)]


def whole_pass(tools: ForwardTools, row: Any, module: nn.Module, side: str) -> Tensor:
    """One row alone through the whole model; what a module takes or gives at the row's token."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        value = args[0] if side == "input" else output[0] if isinstance(output, tuple) else output
        seen.append(value.reshape(len(row.ids), -1)[row.index])

    handle = module.register_forward_hook(hook)
    start = {"decoder_input_ids": torch.tensor([[0]])} if tools.view.is_encoder_decoder else {}
    try:
        with torch.no_grad():
            tools.model(torch.tensor([list(row.ids)]), **start)
    finally:
        handle.remove()
    return seen[0]


def plainly(tools: ForwardTools, site: Site) -> Tensor:
    module = getattr(tools.view, site.part)(site.layer)
    rows = rows_of(tools)
    if site.side == "output":
        return torch.stack([whole_pass(tools, each.rows[0], module, "output") for each in rows])
    keys = torch.stack([torch.stack([whole_pass(tools, row, module, "input") for row in each.rows]) for each in rows])
    return keys[:, 0] / 2 + keys[:, 1:].mean(1) / 2


def same(found: Sequence[dict[Site, Tensor]], wanted: Sequence[dict[Site, Tensor]], bound: float) -> None:
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.keys() == theirs.keys()
        for site, value in theirs.items():
            assert float((mine[site] - value).norm()) <= bound * float(value.norm()), site


# ------------------------------------------------------------------ weights
@pytest.mark.parametrize("contexts", [1, 2, 4, 6])
@pytest.mark.parametrize("kind", ["grouped", "uniform"])
def test_weights_sum_to_one_and_the_bare_prompt_has_half(contexts: int, kind: Any) -> None:
    weights = key_weights(contexts, kind)
    assert len(weights) == contexts and sum(weights) == pytest.approx(1)
    assert len(set(weights[1:])) <= 1
    assert weights[0] == (1 if contexts == 1 else 0.5 if kind == "grouped" else 1 / contexts)
    if (contexts, kind) == (6, "grouped"):
        assert weights == [0.5] + [0.1] * 5, "MEMIT's"


# ------------------------------------------------------------------ against whole passes
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "t5"])
def test_is_what_whole_passes_give(family: str, fast: bool) -> None:
    """After every write; the means are taken with the weights of the sheet."""
    tools, other = tools_of(family, fast=fast), tools_of(family)
    wanted: list[dict[Site, Tensor]] = []
    for layer in (0, 2):
        sites = [Site(layer, "mlp_out", "input"), Site(layer, "attn_out", "input"), STATE]
        wanted.append({site: plainly(other, site) for site in sites})
        written(other, layer)
    wanted.append({STATE: plainly(other, STATE)})
    wanted.append({site: plainly(other, site) for site in (Site(i, "mlp_out", "input") for i in (0, 2))})
    found = all_turns(tools)
    same(found, wanted, 1e-10)
    assert not torch.allclose(found[0][STATE], found[2][STATE]), "what is written changes the state"


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "t5", "llama"])
def test_small_batches_and_padding_on_either_side_change_nothing(family: str) -> None:
    """One row at a time comes back in the order of the facts."""
    wanted = all_turns(tools_of(family))
    for how in ({"max_tokens": 1}, {"max_tokens": 40}, {"side": "left"}):
        # llama's norms are in float32 whatever the model's dtype
        same(all_turns(tools_of(family), **how), wanted, 1e-5 if family == "llama" else 1e-10)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_the_fast_path_in_float32(family: str) -> None:
    fast, plain = (all_turns(tools_of(family, torch.float32, fast=each)) for each in (True, False))
    same(fast, plain, 1e-5)


@pytest.mark.parametrize("templates", [("{}",), TEMPLATES[:2]], ids=["1", "2"])
def test_few_contexts(templates: tuple[str, ...]) -> None:
    tools = tools_of("gpt2")
    site = Site(1, "mlp_out", "input")
    reader = Reader(tools, rows_of(tools, templates), 0, 2, key_weights(len(templates), "uniform"))
    module = tools.view.mlp_out(1)
    each = [[whole_pass(tools, row, module, "input") for row in fact.rows] for fact in rows_of(tools, templates)]
    wanted = torch.stack([torch.stack(keys).mean(0) for keys in each])
    found = reader.read([site], [STATE])
    assert torch.allclose(found[site], wanted, atol=1e-10)


def test_half_precision_is_averaged_in_float32() -> None:
    read = all_turns(tools_of("gpt2", torch.bfloat16))
    assert {value.dtype for turn in read for value in turn.values()} == {torch.float32}


# ------------------------------------------------------------------ what is saved
@contextmanager
def counted(tools: ForwardTools) -> Iterator[list[int]]:
    """Rows that each block is run on."""
    rows = [0] * tools.view.num_layers

    def hook(layer: int) -> Any:
        def count(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows[layer] += args[0].shape[0]

        return count

    handles = [tools.view.block(i).register_forward_pre_hook(hook(i)) for i in range(tools.view.num_layers)]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def test_blocks_below_are_run_once_and_contexts_no_further_than_their_keys() -> None:
    tools = tools_of("gpt2")
    facts, contexts = len(FACTS), len(FACTS) * (len(TEMPLATES) - 1)
    reader = Reader(tools, rows_of(tools), 1, 2, WEIGHTS)
    reader.read([Site(1, "mlp_out", "input")], [STATE])  # also tries the resumed blocks once
    with counted(tools) as rows:
        reader.read([Site(1, "mlp_out", "input")], [STATE])
    assert rows == [0, facts + contexts, facts]
    with counted(tools) as rows:
        reader.advance()
    assert rows == [0, facts + contexts, 0]
    with counted(tools) as rows:
        reader.read([], [STATE])
    assert rows == [0, 0, facts]
    plain = Reader(tools_of("gpt2", fast=False), rows_of(tools), 1, 2, WEIGHTS)
    with counted(plain._forward) as rows:
        plain.read([Site(1, "mlp_out", "input")], [STATE])
    assert rows == [facts + contexts, facts + contexts, facts], "whole passes begin at the embeddings"


def test_rows_end_at_the_subject_except_in_an_encoder() -> None:
    """What follows the token that is read cannot matter to a decoder."""
    for family, cut in (("gpt2", True), ("t5", False)):
        tools = tools_of(family)
        rows = rows_of(tools)
        reader = Reader(tools, rows, 0, 1, WEIGHTS)
        lengths = [len(row.ids) for row in reader._bare]
        assert lengths == [each.rows[0].index + 1 if cut else len(each.rows[0].ids) for each in rows]
