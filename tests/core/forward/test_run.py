"""Reading and changing activations, in every family, against hooks on the bare model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kedit_core.errors import InputError
from kedit_core.forward import Injection, ModuleSite, Site, cells, evaluating, frozen
from kedit_core.forward.state import Taps
from kedit_core.testing.tiny import FAMILIES, tiny

TEXTS = ("The capital of Arvania is", "Mira Taldon was born in the city of", "The river")
every_family = pytest.mark.parametrize("family", FAMILIES)


def targets_for(kit: Any) -> Any:
    return [[5, 6, 7], [8], [9, 10]] if kit.view.is_encoder_decoder else None


def reference(kit: Any, batch: Any, hooks: Callable[[Taps], None] = lambda _: None) -> Any:
    """A plain pass of the whole model; hooks may read on the way."""
    with torch.no_grad(), Taps((batch.rows, batch.width)) as taps:
        hooks(taps)
        return kit.model(**kit.tools().inputs(batch))


@every_family
@pytest.mark.parametrize("side", ["right", "left"])
def test_capture_and_logits_where_read(make_kit: Any, family: str, side: Any) -> None:
    kit = make_kit(family)
    batch = kit.tools().batch(kit.rows(*TEXTS), side=side, targets=targets_for(kit))
    sites = [Site(1, part, face) for part in ("block", "mlp", "mlp_out", "attn", "attn_out") for face in ("output",)]
    sites += [Site(1, "mlp_out", "input"), Site(0, "block", "input"), Site(2, "attn_out", "input")]
    want: dict[Any, Tensor] = {}

    def hooks(taps: Taps) -> None:
        for site in sites:
            module = {"block": kit.view.block}.get(site.part) or getattr(kit.view, site.part)
            taps.read(module(site.layer), site.side, lambda x, site=site: want.__setitem__(site, x.clone()))

    output = reference(kit, batch, hooks)
    columns = batch.columns([1, 4, 2])[[2, 0, 1]]
    where = cells([2, 0, 1], [1, 0, 0] if kit.view.is_encoder_decoder else columns)
    run = kit.tools().run(batch, capture=sites, logits_at=where)
    assert set(run.activations) == set(sites)
    for site, value in run.activations.items():
        torch.testing.assert_close(value, want[site], rtol=0, atol=0)
        assert value.shape[:2] == (batch.rows, batch.width)
        assert not value.requires_grad
    torch.testing.assert_close(run.logits, output.logits[where[:, 0], where[:, 1]], rtol=1e-5, atol=1e-5)

    at = cells([1, 0], batch.columns([1, 3, 1])[[1, 0]])
    some = kit.tools().run(batch, capture=sites, at=at)
    assert some.logits is None
    for site, value in some.activations.items():
        torch.testing.assert_close(value, want[site][at[:, 0], at[:, 1]], rtol=1e-6, atol=1e-6)


@every_family
def test_stopping_early(make_kit: Any, family: str) -> None:
    """Nothing after what is wanted is run."""
    kit = make_kit(family)
    batch = kit.tools().batch(kit.rows(*TEXTS))
    later: list[int] = []
    handles = [
        kit.view.block(i).register_forward_pre_hook(lambda *_, i=i: later.append(i)) for i in range(kit.view.num_layers)
    ]
    try:
        whole = kit.tools().run(batch, capture=[Site(1, "mlp_out", "input"), Site(0, "block")])
        assert later == [0, 1]
        later.clear()
        kit.tools().run(batch, stop_after=0)
        assert later == [0]
        with pytest.raises(InputError, match="later stop_after"):
            kit.tools().run(batch, capture=[Site(1, "block")], stop_after=0)
    finally:
        for handle in handles:
            handle.remove()
    assert whole.logits is None


@every_family
@pytest.mark.parametrize("how", ["add", "set", "scale"])
def test_injections(make_kit: Any, family: str, how: Any) -> None:
    kit = make_kit(family)
    batch = kit.tools().batch(kit.rows(*TEXTS), targets=targets_for(kit))
    values = torch.randn(2, kit.view.mlp_size(1), generator=torch.Generator().manual_seed(1))
    site = Site(1, "mlp_out", "input")
    injection = Injection(site, torch.tensor([0, 2]), torch.tensor([2, 1]), values, how)
    clean = kit.tools().run(batch, capture=[site]).activations[site]
    run = kit.tools().run(batch, capture=[site, Site(1, "mlp_out")], inject=[injection])
    want = clean.clone()
    for row, column, value in zip((0, 2), (2, 1), values, strict=True):
        old = want[row, column]
        want[row, column] = {"add": old + value, "set": value, "scale": old * value}[how]
    torch.testing.assert_close(run.activations[site], want)
    expected = kit.view.mlp_out(1)(want)
    torch.testing.assert_close(run.activations[Site(1, "mlp_out")], expected.detach(), rtol=1e-5, atol=1e-5)


def test_repeated_cells_add_up_and_cast(make_kit: Any) -> None:
    kit = make_kit("gpt2", torch.bfloat16)
    batch = kit.tools().batch(kit.rows("The capital"))
    site = Site(0, "mlp")
    one = torch.ones(kit.view.hidden_size)
    twice = Injection(site, torch.tensor([0, 0]), torch.tensor([1, 1]), one)
    clean = kit.tools().run(batch, capture=[site]).activations[site]
    got = kit.tools().run(batch, capture=[site], inject=[twice]).activations[site]
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got[0, 1], clean[0, 1] + 2)
    torch.testing.assert_close(got[0, 0], clean[0, 0])


def test_modules_by_name(make_kit: Any) -> None:
    kit = make_kit("llama")
    batch = kit.tools().batch(kit.rows("The capital"))
    site = ModuleSite("model.layers.1.mlp.gate_proj")
    assert kit.tools().run(batch, capture=[site]).activations[site].shape == (1, batch.width, kit.view.mlp_size(1))
    with pytest.raises(InputError, match="no module"):
        kit.tools().run(batch, capture=[ModuleSite("model.layers.1.nothing")])
    with pytest.raises(InputError, match="no block 9"):
        kit.tools().run(batch, capture=[Site(9, "mlp")])
    with pytest.raises(InputError, match="part is"):
        kit.tools().run(batch, capture=[Site(0, "mpl")])  # type: ignore[arg-type]


@every_family
def test_output_gradients(make_kit: Any, family: str) -> None:
    """Gradients at outputs and inputs of a projection give the gradient of its weight."""
    kit = make_kit(family, torch.float64)
    batch = kit.tools().batch(kit.rows(*TEXTS), targets=targets_for(kit))
    where = cells([0, 1, 2], [0, 0, 1]) if kit.view.is_encoder_decoder else cells([0, 1, 2], batch.columns([-1] * 3))
    out, into = Site(1, "mlp_out"), Site(1, "mlp_out", "input")

    def loss(logits: Tensor) -> Tensor:
        return torch.log_softmax(logits, -1)[:, 3].sum()

    run = kit.tools().run(batch, capture=[into], output_gradients=[out, Site(0, "mlp_out")], loss=loss, logits_at=where)
    weight = kit.view.mlp_out(1).weight
    rows = torch.einsum("bto,bti->oi", run.gradients[out], run.activations[into])
    with torch.enable_grad():
        output = kit.model(**kit.tools().inputs(batch))
        (want,) = torch.autograd.grad(loss(output.logits[where[:, 0], where[:, 1]]), weight)
    # these families take their attention in float32 whatever the model's dtype
    loose = 1e-5 if family in ("gptj", "gpt_neo") else 1e-9
    want = want.t() if kit.view.layout(kit.view.mlp_out_weight(1)) == "in_out" else want
    torch.testing.assert_close(rows, want, rtol=loose, atol=loose)
    assert run.gradients[Site(0, "mlp_out")].abs().sum() > 0
    with pytest.raises(InputError, match="need a loss"):
        kit.tools().run(batch, output_gradients=[out])


def test_gradients_in_injected_values_and_in_parameters(make_kit: Any) -> None:
    kit = make_kit("gpt2")
    batch = kit.tools().batch(kit.rows("The capital"))
    values = torch.zeros(1, kit.view.hidden_size, requires_grad=True)
    injection = Injection(Site(0, "mlp"), torch.tensor([0]), torch.tensor([0]), values)
    run = kit.tools().run(batch, inject=[injection], logits_at=cells([0], [-1 + batch.width]), grad=True)
    assert run.logits is not None
    weight = kit.view.mlp_out(0).weight
    by_value, by_weight = torch.autograd.grad(run.logits.square().sum(), [values, weight])
    assert by_value.abs().sum() > 0 and by_weight.abs().sum() > 0


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "t5"])
def test_a_memory_budget_changes_nothing(make_kit: Any, family: str) -> None:
    kit = make_kit(family)
    batch = kit.tools().batch(kit.rows(*TEXTS), targets=targets_for(kit))
    at = cells([2, 0, 1, 0], [1, 0, 2, 1])
    where = cells([1, 2, 0], [0, 1, 0])
    injection = Injection(Site(0, "mlp"), torch.tensor([2, 0]), torch.tensor([0, 1]), torch.ones(kit.view.hidden_size))
    sites = [Site(1, "mlp_out", "input"), Site(1, "block")]
    for chosen in (None, at):
        whole = kit.tools().run(batch, capture=sites, at=chosen, inject=[injection], logits_at=where)
        parts = kit.tools(memory_budget=1).run(batch, capture=sites, at=chosen, inject=[injection], logits_at=where)
        torch.testing.assert_close(parts.logits, whole.logits, rtol=1e-5, atol=1e-5)
        for site in sites:
            torch.testing.assert_close(parts.activations[site], whole.activations[site], rtol=1e-5, atol=1e-5)


@every_family
def test_a_span_of_blocks(make_kit: Any, family: str) -> None:
    kit = make_kit(family)
    batch = kit.tools().batch(kit.rows(*TEXTS))
    sites = [Site(i, "block") for i in range(kit.view.num_layers)]
    want = kit.tools().run(batch, capture=sites).activations
    calls = kit.tools().record(batch)
    with torch.no_grad():
        got = kit.tools().blocks(want[sites[0]], 1, kit.view.num_layers - 1, calls)
    torch.testing.assert_close(got, want[sites[-1]], rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ the model is left as found
def test_modes_and_flags_come_back_exactly() -> None:
    model, _ = tiny("gpt2")
    model.train()
    model.transformer.h[1].eval()
    list(model.parameters())[3].requires_grad_(False)
    before = ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()])
    with pytest.raises(KeyError), evaluating(model), frozen(model):
        assert not any(m.training for m in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
        raise KeyError
    assert before == ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()])


def test_dropout_is_off_whatever_the_mode(make_kit: Any) -> None:
    kit = make_kit("gpt2")
    batch = kit.tools().batch(kit.rows("The capital of"))
    where = cells([0], [1])
    want = kit.tools().run(batch, logits_at=where).logits
    kit.model.train()
    try:
        got = kit.tools().run(batch, logits_at=where).logits
        tail = kit.tools().tail(batch, 0, torch.tensor([1]), where)
        with torch.no_grad():
            again = tail.logits(torch.zeros(1, kit.view.hidden_size))
        assert all(module.training for module in kit.model.modules())
    finally:
        kit.model.eval()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(again, want)


@every_family
def test_hooks_are_gone_after_an_error(make_kit: Any, family: str) -> None:
    """(``make_kit`` compares the model's hooks at the end.)"""
    kit = make_kit(family)
    batch = kit.tools().batch(kit.rows("The capital"), targets=[[5]] if kit.view.is_encoder_decoder else None)
    wrong = Injection(Site(1, "mlp"), torch.tensor([0]), torch.tensor([0]), torch.ones(7))
    with pytest.raises(RuntimeError):
        kit.tools().run(batch, inject=[wrong], logits_at=cells([0], [0]))

    def interrupted(_: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kit.tools().run(batch, output_gradients=[Site(0, "mlp")], loss=interrupted, logits_at=cells([0], [0]))
