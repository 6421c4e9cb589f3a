"""Blocks resumed from a kept input against whole passes."""

from __future__ import annotations

import pytest
import torch

from kedit_core.errors import InputError
from kedit_core.forward import ForwardTools, Site, Span, TokenBoundary, cells
from kedit_core.models import AdapterRegistry
from kedit_core.models.builtin import plugin
from kedit_core.testing.tiny import FAMILIES, tiny

BOUND = {torch.float64: 1e-10, torch.float32: 1e-5}
TEXTS = ("The capital of France is", "Alice", "In the morning the mother tongue of Bob is")


def tools_of(family: str, dtype: torch.dtype, fast: bool = True) -> ForwardTools:
    model, tokenizer = tiny(family, dtype=dtype)
    view = AdapterRegistry(plugin.register_adapters()).for_model(model)
    boundary = TokenBoundary(tokenizer, encoder_decoder=view.is_encoder_decoder)
    return ForwardTools(model, view, boundary, fast=fast)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("family", "dtype"),
    # eager attention of some families gives NaN to padding in float64, whoever runs the blocks
    [(family, torch.float32) for family in sorted(FAMILIES)]
    + [(family, torch.float64) for family in ("gpt2", "gpt_neox", "t5")],
)
def test_resumed_blocks_equal_whole_passes(family: str, dtype: torch.dtype, side: str) -> None:
    tools = tools_of(family, dtype)
    view = tools.view
    last = view.num_layers - 1
    rows = [tools.boundary.prompt(text).ids for text in TEXTS]
    batch = tools.batch(rows, side=side)  # type: ignore[arg-type]
    at = cells(range(3), batch.columns([len(row) - 1 for row in rows]))
    if side == "right":
        assert tools.span(batch, 1, last).fast
    span = tools.span(batch, 0, last)
    for layer in range(view.num_layers):
        sites = (Site(layer, "mlp_out", "input"), Site(last, "block", "output"))
        resumed = span.read(sites, at)
        whole = tools.run(batch, capture=sites, at=at).activations
        for site in sites:
            assert torch.allclose(resumed[site], whole[site], rtol=0, atol=BOUND[dtype]), (layer, site)
        with torch.no_grad():  # the weight of this layer changes, as an edit changes it
            view.down_weight(layer).add_(0.1 * torch.ones(view.hidden_size, 1, dtype=dtype))
        assert not torch.allclose(span.read(sites[1:], at)[sites[1]], whole[sites[1]], rtol=0, atol=1e-3)
        span.advance()
    assert span.next == view.num_layers


def test_the_plain_path_reads_the_same() -> None:
    fast, plain = tools_of("gpt2", torch.float64), tools_of("gpt2", torch.float64, fast=False)
    rows = [fast.boundary.prompt(text).ids for text in TEXTS]
    spans = [tools.span(tools.batch(rows), 1, 2) for tools in (fast, plain)]
    assert [span.fast for span in spans] == [True, False]
    site = Site(2, "block")
    assert torch.allclose(*(span.read([site])[site] for span in spans), rtol=0, atol=1e-12)


def test_what_lies_before_a_span_is_refused() -> None:
    tools = tools_of("gpt2", torch.float32)
    batch = tools.batch([tools.boundary.prompt(TEXTS[0]).ids])
    span = tools.span(batch, 1, 2)
    with pytest.raises(InputError, match="does not come by"):
        span.read([Site(0, "mlp_out", "input"), Site(2, "block")])
    with pytest.raises(InputError, match="0 to"):
        tools.span(batch, 2, 9)
    assert isinstance(span, Span)


def test_hooks_and_modes_are_gone_afterwards() -> None:
    tools = tools_of("llama", torch.float32)
    tools.model.train()
    span = tools.span(tools.batch([tools.boundary.prompt(TEXTS[0]).ids]), 0, 2)
    span.read([Site(1, "block")])
    span.advance()
    assert all(module.training for module in tools.model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tools.model.modules())
