"""Tails: fast and plain give what a hook on the bare model gives, logits and gradients, in every family."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from tail_tools import CASES, TEXTS, compare, hooked, problem, setting
from torch import Tensor, nn

from kedit_core.errors import InputError
from kedit_core.forward import PromptScope, Site, cells
from kedit_core.testing.tiny import tiny

# these take attention scores in float32 whatever the model's dtype
_ROUGH = ("gptj", "gpt_neo")
# these take their norms in float32 whatever the model's dtype, which the gradient feels more than the value
_ROUGH_GRADIENT = (*_ROUGH, "llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3")

each_case = pytest.mark.parametrize("case", CASES)
both_paths = pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])


@each_case
@both_paths
@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_and_gradients_in_float32(make_kit: Any, case: str, fast: bool, side: Any) -> None:
    kit = setting(make_kit, case)
    tools = kit.tools(fast=fast)
    batch, positions, where = problem(kit, side)
    for layer in (0, kit.view.num_layers - 2, kit.view.num_layers - 1):
        tail = tools.tail(batch, layer, positions, where)
        assert tail.fast is fast
        compare(kit, tail, batch, layer, positions, where, 1e-5)


@each_case
@both_paths
def test_logits_and_gradients_in_float64(make_kit: Any, case: str, fast: bool) -> None:
    kit = setting(make_kit, case, torch.float64)
    if kit.model.config._attn_implementation == "eager" and "window" in case and not case.startswith("gpt_neo"):
        pytest.skip("transformers' eager attention gives NaN for padding beyond the window in float64")
    batch, positions, where = problem(kit)
    tail = kit.tools(fast=fast).tail(batch, 1, positions, where)
    assert tail.fast is fast
    family = CASES[case][0]
    tolerance = 1e-6 if family in _ROUGH else 1e-10
    compare(kit, tail, batch, 1, positions, where, tolerance, 1e-5 if family in _ROUGH_GRADIENT else None)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "t5"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@both_paths
def test_half_precision_models_take_a_float32_delta(make_kit: Any, family: str, dtype: torch.dtype, fast: bool) -> None:
    kit = make_kit(family, dtype)
    batch, positions, where = problem(kit)
    tail = kit.tools(fast=fast).tail(batch, 1, positions, where)
    assert tail.fast is fast
    delta = torch.randn(3, kit.view.hidden_size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = tail.logits(delta)
    assert logits.dtype == dtype
    (grad,) = torch.autograd.grad(logits.float().sum(), delta)
    assert grad.dtype == torch.float32
    want = hooked(kit, batch, 1, positions, where, delta)
    torch.testing.assert_close(logits.float(), want.float(), rtol=0.05, atol=0.05 * float(want.detach().abs().max()))


@both_paths
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "t5"])
def test_rows_of_one_group_share_a_delta(make_kit: Any, family: str, fast: bool) -> None:
    kit = make_kit(family, torch.float64)
    batch, positions, where = problem(kit)
    tail = kit.tools(fast=fast).tail(batch, 1, positions, where)
    delta = torch.linspace(-1, 1, 2 * kit.view.hidden_size, dtype=torch.float64).view(2, -1).requires_grad_()
    group = torch.tensor([1, 0, 1])
    got, want = tail.logits(delta, group), tail.logits(delta[group])
    torch.testing.assert_close(got, want)
    grads = [torch.autograd.grad(x.square().sum(), delta)[0] for x in (got, want)]
    torch.testing.assert_close(*grads)
    for wrong in (delta, delta[:, :-1]):
        with pytest.raises(InputError, match="delta must be"):
            tail.logits(wrong)


@each_case
@both_paths
def test_zero_delta_is_the_clean_model_and_captures_are_clean(make_kit: Any, case: str, fast: bool) -> None:
    kit = setting(make_kit, case)
    tools = kit.tools(fast=fast)
    batch, positions, where = problem(kit)
    key, value = Site(1, "mlp_out", "input"), Site(1, "mlp", "output")
    at = cells(range(3), positions)
    tail = tools.tail(batch, 1, positions, where, capture=(key, value), at=at)
    clean = tools.run(batch, capture=(key, value), at=at, logits_at=where)
    with torch.no_grad():
        logits = tail.logits(torch.zeros(3, kit.view.hidden_size))
    assert not logits.requires_grad
    torch.testing.assert_close(logits, clean.logits, rtol=1e-5, atol=1e-5)
    for site in (key, value):
        torch.testing.assert_close(tail.captured[site], clean.activations[site], rtol=1e-5, atol=1e-5)


@both_paths
def test_only_delta_takes_a_gradient(make_kit: Any, fast: bool) -> None:
    kit = make_kit("llama")
    batch, positions, where = problem(kit)
    delta = torch.zeros(3, kit.view.hidden_size, requires_grad=True)
    kit.tools(fast=fast).tail(batch, 1, positions, where).logits(delta).sum().backward()
    assert delta.grad is not None and float(delta.grad.abs().sum()) > 0
    assert all(p.grad is None and p.requires_grad for p in kit.model.parameters())


def test_a_tail_can_be_run_again_and_again(make_kit: Any) -> None:
    kit = make_kit("gpt2")
    batch, positions, where = problem(kit)
    tail = kit.tools().tail(batch, 0, positions, where)
    delta = torch.ones(3, kit.view.hidden_size)
    with torch.no_grad():
        first = tail.logits(delta)
        tail.logits(-delta)
        torch.testing.assert_close(tail.logits(delta), first, rtol=0, atol=0)


def test_a_row_written_at_its_last_column_and_at_its_first(make_kit: Any) -> None:
    for case in ("gpt2", "llama", "gemma2"):
        kit = setting(make_kit, case)
        batch = kit.tools().batch(kit.rows(TEXTS[0], TEXTS[0]))
        for index in (0, -1):
            positions = batch.columns([index, index])
            where = cells([0, 1], batch.columns([-1, -1]))
            tail = kit.tools().tail(batch, 1, positions, where)
            assert tail.fast
            compare(kit, tail, batch, 1, positions, where, 1e-5)


def test_nothing_below_the_edited_block_or_before_the_position_is_run(make_kit: Any) -> None:
    kit = make_kit("llama")
    batch, positions, where = problem(kit)
    tail = kit.tools().tail(batch, 1, positions, where)
    seen: list[tuple[int, int]] = []
    handles = [
        kit.view.block(i).register_forward_pre_hook(lambda _, args, i=i: seen.append((i, args[0].shape[1])))
        for i in range(kit.view.num_layers)
    ]
    heads: list[int] = []
    handles.append(kit.view.lm_head.register_forward_pre_hook(lambda _, args: heads.append(args[0].shape[0])))
    try:
        with torch.no_grad():
            tail.logits(torch.zeros(3, kit.view.hidden_size))
    finally:
        for handle in handles:
            handle.remove()
    columns = int(where[:, 1].max()) + 1 - int(positions.min())
    assert seen == [(2, columns)]
    assert heads == [where.shape[0]]


class Positional(nn.Module):
    """A block that counts its columns from where it is called: right for whole rows, wrong for a tail."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        ramp = torch.arange(hidden_states.shape[1], dtype=hidden_states.dtype).unsqueeze(1)
        return self.block(hidden_states, **kwargs) + ramp  # type: ignore[no-any-return]


def _odd_kit(make_kit: Any, wrapped: type[nn.Module]) -> Any:
    from attrs import evolve

    from kedit_core.models import ModelView

    kit = make_kit("llama")
    model, _ = tiny("llama")
    model.model.layers[2] = wrapped(model.model.layers[2])
    block, inner = "model.layers.{}", kit.view.adapter
    view = ModelView(inner, kit.model)
    odd = evolve(kit, model=model, view=view)

    class View(ModelView):
        def __init__(self) -> None:
            self.adapter, self.model, self.config = inner, model, model.config

        def _module(self, name: str) -> nn.Module:
            try:
                return super()._module(name)
            except Exception:
                return super()._module(name.replace(block.format(2), block.format(2) + ".block"))

    return evolve(odd, view=View())


def test_an_architecture_the_fast_path_gets_wrong_falls_back(make_kit: Any, caplog: pytest.LogCaptureFixture) -> None:
    odd = _odd_kit(make_kit, Positional)
    batch, positions, where = problem(odd)
    tools = odd.tools()
    with caplog.at_level(logging.WARNING, "kedit_core.forward"):
        tail = tools.tail(batch, 0, positions, where)
    assert not tail.fast
    assert "plain one is used" in caplog.text
    compare(odd, tail, batch, 0, positions, where, 1e-5)
    caplog.clear()
    assert not tools.tail(batch, 0, positions, where).fast  # and does not try again


class Unknown(nn.Module):
    """A block with an argument over the columns that nobody knows."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Tensor, **kwargs: Any) -> Tensor:
        return self.block(*args, **kwargs)  # type: ignore[no-any-return]


def test_a_call_that_cannot_be_read_falls_back(make_kit: Any, caplog: pytest.LogCaptureFixture) -> None:
    odd = _odd_kit(make_kit, Unknown)
    batch, positions, where = problem(odd)
    with caplog.at_level(logging.WARNING, "kedit_core.forward"):
        tail = odd.tools().tail(batch, 0, positions, where)
    assert not tail.fast
    assert "there is no fast path" in caplog.text
    compare(odd, tail, batch, 0, positions, where, 1e-5)


def test_module_operations_on_the_model_get_whole_rows(make_kit: Any) -> None:
    kit = make_kit("gpt2")
    batch, positions, where = problem(kit)
    scope = PromptScope()
    tools = kit.tools(scope=scope)
    assert tools.tail(batch, 0, positions, where).fast
    scope.attach(kit.model, kit.view)
    try:
        assert not tools.tail(batch, 0, positions, where).fast
    finally:
        scope.detach()


def test_cells_outside_the_batch_are_refused(make_kit: Any) -> None:
    kit = make_kit("gpt2")
    batch, positions, where = problem(kit)
    for columns, at in (
        (positions + 100, where),
        (positions[:2], where),
        (positions, where + 100),
        (positions, where[:0]),
        (positions, where[:, 0]),
    ):
        with pytest.raises(InputError):
            kit.tools().tail(batch, 0, columns, at)
    with pytest.raises(InputError, match="no block"):
        kit.tools().tail(batch, 7, positions, where)
    t5 = make_kit("t5")
    with pytest.raises(InputError, match="decoder_input_ids"):
        t5.tools().tail(t5.tools().batch(t5.rows("The")), 0, torch.tensor([0]), cells([0], [0]))
