"""The value search: batched equals one by one, each speed-up equals the plain way, and the numbers of its loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from attrs import evolve
from locate_tools import MIRA, OREN, PARIS, TEMPLATES, spanned

from kedit_core import EditRequest
from kedit_core.errors import MethodError
from kedit_core.forward import ForwardTools, TokenBoundary
from kedit_core.models import AdapterRegistry
from kedit_core.models.builtin import plugin
from kedit_core.testing.tiny import FAMILIES, tiny
from kedit_methods_locate import value
from kedit_methods_locate.descent import RowAdam
from kedit_methods_locate.grouping import grouped
from kedit_methods_locate.hparams import RomeHyperParams
from kedit_methods_locate.problem import Problem
from kedit_methods_locate.rows import Rewrite, rewrite
from kedit_methods_locate.value import Values, search

REQUESTS = (PARIS, MIRA, OREN, evolve(PARIS, prompt="France", target_new="Eskel"))
# these round to float32 in their attention whatever the model's dtype
ROUNDING = {"gptj": 1e-5, "gpt_neo": 1e-5}


def tools_of(family: str, dtype: torch.dtype = torch.float64, **settings: Any) -> ForwardTools:
    model, tokenizer = tiny(family, dtype=dtype)
    view = AdapterRegistry(plugin.register_adapters()).for_model(model)
    return ForwardTools(model, view, TokenBoundary(tokenizer, view.is_encoder_decoder), **settings)


def plain(tools: ForwardTools) -> ForwardTools:
    return ForwardTools(tools.model, tools.view, tools.boundary, fast=False)


def rows_of(tools: ForwardTools, requests: Sequence[EditRequest]) -> list[Rewrite]:
    return [rewrite(tools.boundary, spanned(request), TEMPLATES) for request in requests]


def settings(**values: Any) -> RomeHyperParams:
    return RomeHyperParams(**{"layer": 1, "v_num_grad_steps": 5, "v_lr": 0.1, **values})


def same(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-8) -> None:
    assert float((found - wanted).abs().max()) <= tolerance * max(1.0, float(wanted.abs().max()))


def one_by_one(tools: ForwardTools, rewrites: Sequence[Rewrite], hparams: RomeHyperParams) -> list[Values]:
    return [search(tools, [each], 1, hparams) for each in rewrites]


# ------------------------------------------------------------------ acceptance check 9, speed-up 6
@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_batched_equals_one_by_one(family: str) -> None:
    tools = tools_of(family)
    rewrites = rows_of(tools, REQUESTS)
    together = search(tools, rewrites, 1, settings())
    for i, alone in enumerate(one_by_one(tools, rewrites, settings())):
        same(together.delta[i], alone.delta[0])
        same(together.clean.keys[i], alone.clean.keys[0])
        same(together.clean.output[i], alone.clean.output[0])
        assert together.traces[i] == pytest.approx(alone.traces[0], rel=1e-8)
        assert float(together.loss[i]) == pytest.approx(float(alone.loss[0]), rel=1e-8)


@pytest.mark.parametrize("fast", [True, False])
def test_batched_equals_one_by_one_with_different_stops(fast: bool) -> None:
    """Some stop at once, some in the middle, some never; a group of which most are done goes on with the rest."""
    tools = tools_of("gpt2", fast=fast)
    rewrites = rows_of(tools, REQUESTS)
    traces = search(tools, rewrites, 1, settings(v_num_grad_steps=10, v_lr=0.5, early_stop_loss=0)).traces
    # a limit that the requests pass at different steps
    limit = sorted(trace[4] for trace in traces)[1] + 1e-6
    hparams = settings(v_num_grad_steps=10, v_lr=0.5, early_stop_loss=limit)
    together = search(tools, rewrites, 1, hparams)
    lengths = [len(trace) for trace in together.traces]
    assert len(set(lengths)) > 2
    for i, alone in enumerate(one_by_one(tools, rewrites, hparams)):
        same(together.delta[i], alone.delta[0])
        assert together.traces[i] == pytest.approx(alone.traces[0], rel=1e-8)
        same(together.probability[i], alone.probability[0])


def test_groups_that_fit_the_memory_change_nothing() -> None:
    tools = tools_of("llama")
    rewrites = rows_of(tools, REQUESTS)
    assert len(grouped(tools.view, rewrites, 1, None)) == 1
    assert sorted(i for group in grouped(tools.view, rewrites, 1, 1) for i in group) == [0, 1, 2, 3]
    same(search(tools, rewrites, 1, settings(), memory_budget=1).delta, search(tools, rewrites, 1, settings()).delta)
    by_length = [rewrites[i].rows[0].ids for i in grouped(tools.view, rewrites, 1, 1)[0]]
    assert len(by_length) == 1


def test_large_groups_end_where_tails_get_longer() -> None:
    """Every row costs as much as the longest of its group."""
    tools = tools_of("llama")
    short, long = rows_of(tools, [PARIS, OREN])
    mixed = [long, short] * 20
    groups = grouped(tools.view, mixed, 1, None)
    assert [len(group) for group in groups] == [20, 20]
    assert {i % 2 for i in groups[0]} == {1}
    assert {i % 2 for i in groups[1]} == {0}
    assert [len(group) for group in grouped(tools.view, [long, short] * 7 + [long], 1, None)] == [15]
    hparams = settings(v_num_grad_steps=3)
    found, alone = search(tools, mixed, 1, hparams), search(tools, [long, short], 1, hparams)
    same(found.delta, alone.delta.repeat(20, 1))


# ------------------------------------------------------------------ speed-ups 1 to 5: equal to the plain path
@pytest.mark.parametrize("family", FAMILIES)
def test_fast_equals_plain(family: str) -> None:
    # gemma2's softmax overflows in float64 (its mask is float64's least number, its softmax float32)
    dtype, tolerance = (torch.float32, 1e-3) if family == "gemma2" else (torch.float64, ROUNDING.get(family, 1e-8))
    tools = tools_of(family, dtype)
    rewrites = rows_of(tools, REQUESTS[:2])
    fast, slow = search(tools, rewrites, 1, settings()), search(plain(tools), rewrites, 1, settings())
    assert Problem(tools, rewrites, 1, settings())._tail.fast
    same(fast.delta, slow.delta, tolerance)
    same(fast.clean.keys, slow.clean.keys, tolerance)
    for a, b in zip(fast.traces, slow.traces, strict=True):
        assert a == pytest.approx(b, rel=max(tolerance, 1e-6))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "t5"])
def test_first_and_last_layer(family: str) -> None:
    tools = tools_of(family)
    # in the last layer a vector reaches the answer only where the subject ends the prompt
    for layer, requests in ((0, REQUESTS), (tools.view.num_layers - 1, [OREN])):
        rewrites = rows_of(tools, requests)
        fast, slow = (search(each, rewrites, layer, settings(layer=layer)) for each in (tools, plain(tools)))
        same(fast.delta, slow.delta)
        assert bool(fast.delta.any())


def test_the_tail_begins_after_the_layer_and_at_the_subject() -> None:
    """1 and 2: rows are aligned at their ends, so the prefix is as long as it can be."""
    tools = tools_of("llama")
    rewrites = rows_of(tools, [PARIS])
    tail = Problem(tools, rewrites, 1, settings())._tail
    assert tail.first_block == 2  # type: ignore[attr-defined]
    behind = max(len(row.ids) - row.index for row in rewrites[0].rows) + len(rewrites[0].target) - 1
    assert tail.hidden.shape[1] == behind  # type: ignore[attr-defined]


def test_logits_only_where_they_are_read() -> None:
    """3: T cells for each context and one for the essence."""
    tools = tools_of("gpt2")
    rewrites = rows_of(tools, [PARIS, MIRA])
    cells = Problem(tools, rewrites, 1, settings())._tail.plan.logits_at
    assert len(cells) == sum(len(r.rows) * len(r.target) + 1 for r in rewrites)


def test_essence_is_cut_after_the_subject() -> None:
    """4: the cut row is the beginning of the full one, and gives the same."""
    tools = tools_of("gpt2")
    (found,) = rows_of(tools, [MIRA])
    assert found.essence.cut().ids == found.essence.ids[: found.essence.index + 1]
    problem = Problem(tools, [found], 1, settings())
    lengths = problem._tail.plan.batch.lengths.tolist()
    assert lengths[-1] == found.essence.index + 1
    last = search(tools, [found], 1, settings(kl_position="last", kl_factor=1.0))
    same(last.delta, search(plain(tools), [found], 1, settings(kl_position="last", kl_factor=1.0)).delta)
    assert float((last.delta - search(tools, [found], 1, settings(kl_factor=1.0)).delta).abs().max()) > 1e-4


def test_one_forward_gives_keys_values_and_the_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """5: no pass of the whole model beside the tail's own."""
    tools = tools_of("llama")
    rewrites = rows_of(tools, [PARIS])
    search(tools, rewrites, 1, settings())  # the one comparison with the plain path is made here
    calls: list[int] = []
    original = type(tools.model).forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(tools.model), "forward", counted)
    search(tools, rewrites, 1, settings())
    assert len(calls) == 1


# ------------------------------------------------------------------ acceptance check 8
def test_one_step_changes_nothing() -> None:
    tools = tools_of("gpt2")
    found = search(tools, rows_of(tools, [PARIS]), 1, settings(v_num_grad_steps=1))
    assert not bool(found.delta.any())
    assert len(found.traces[0]) == 1


def test_first_loss_is_the_unedited_nll() -> None:
    tools = tools_of("gpt2")
    rewrites = rows_of(tools, [PARIS])
    found = search(tools, rewrites, 1, settings(v_num_grad_steps=1, kl_factor=5.0, v_weight_decay=5.0))
    nll = 0.0
    for row in rewrites[0].rows:
        ids = torch.tensor([[*row.ids, *rewrites[0].target[:-1]]])
        logits = tools.model(ids).logits[0].log_softmax(-1)
        asked = [float(logits[len(row.ids) - 1 + t, y].detach()) for t, y in enumerate(rewrites[0].target)]
        nll -= sum(asked) / len(asked) / len(rewrites[0].rows)
    assert found.traces[0][0] == pytest.approx(nll, rel=1e-10)


def test_encoder_decoders_are_asked_by_their_decoder() -> None:
    """The first loss is that of transformers' own labels, averaged over contexts; the essence is the first answer."""
    tools = tools_of("t5")
    (found,) = rows_of(tools, [PARIS])
    problem = Problem(tools, [found], 1, settings(kl_factor=1.0))
    losses = problem.losses(torch.zeros(1, 1, 32, dtype=torch.float64))
    labels = torch.tensor([found.target])
    with torch.no_grad():
        wanted = [float(tools.model(input_ids=torch.tensor([row.ids]), labels=labels).loss) for row in found.rows]
        first = (
            tools.model(input_ids=torch.tensor([found.essence.ids]), decoder_input_ids=torch.tensor([[0]]))
            .logits[0, 0]
            .log_softmax(-1)
        )
    assert losses.nll[0].tolist() == pytest.approx(wanted, rel=1e-6)
    assert problem.base is not None
    same(problem.base[0], first, 1e-6)


@pytest.mark.parametrize("clamp", [0.01, 0.3])
def test_clamp_is_never_exceeded(clamp: float) -> None:
    tools = tools_of("llama")
    found = search(tools, rows_of(tools, REQUESTS), 1, settings(v_lr=0.5, clamp_norm_factor=clamp))
    assert bool((found.delta.norm(dim=1) <= clamp * found.clean.value.norm(dim=1) * (1 + 1e-6)).all())


def test_decay_has_no_gradient_at_zero() -> None:
    """A huge decay must not throw the first step off, where the norm's gradient is not defined."""
    tools = tools_of("gpt2")
    rewrites = rows_of(tools, [PARIS])
    with_decay = search(tools, rewrites, 1, settings(v_num_grad_steps=2, v_weight_decay=1e6, clamp_norm_factor=None))
    without = search(tools, rewrites, 1, settings(v_num_grad_steps=2, v_weight_decay=0.0, clamp_norm_factor=None))
    same(with_decay.delta, without.delta)
    assert bool(torch.isfinite(with_decay.delta).all())


# ------------------------------------------------------------------ the optimiser
def test_row_adam_is_adam() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    gradients = [torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(8)]
    stops = [8, 3, 5]  # steps that each row takes
    mine, adam = start.clone(), RowAdam(start, 0.3)
    for step, gradient in enumerate(gradients):
        mine = adam.step(mine, gradient, torch.tensor([step < stop for stop in stops]))
    for row, stop in enumerate(stops):
        theirs = start[row].clone().requires_grad_()
        torchs = torch.optim.Adam([theirs], lr=0.3)
        for gradient in gradients[:stop]:
            theirs.grad = gradient[row].clone()
            torchs.step()
        same(mine[row], theirs.detach(), 1e-12)


# ------------------------------------------------------------------ what is left behind, dtypes, failures
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_vector_is_float32_whatever_the_model(dtype: torch.dtype) -> None:
    tools = tools_of("llama", dtype)
    found = search(tools, rows_of(tools, [PARIS]), 1, settings(clamp_norm_factor=None))
    assert found.delta.dtype == torch.float32
    assert bool(found.delta.any())
    assert found.traces[0][-1] < found.traces[0][0]


def test_runs_where_gradients_are_off_and_leaves_flags_alone() -> None:
    tools = tools_of("gpt2")
    flags = [i % 2 == 0 for i, _ in enumerate(tools.model.parameters())]
    for parameter, flag in zip(tools.model.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)
    with torch.no_grad():
        search(tools, rows_of(tools, [PARIS]), 1, settings())
        assert not torch.is_grad_enabled()
    assert [p.requires_grad for p in tools.model.parameters()] == flags
    assert all(p.grad is None for p in tools.model.parameters())


def test_a_loss_that_is_not_finite_is_refused() -> None:
    tools = tools_of("gpt2")
    with torch.no_grad():
        tools.view.mlp_out(1).bias[0] = float("inf")
    with pytest.raises(MethodError, match="loss is nan"):
        search(plain(tools), rows_of(tools, [PARIS]), 1, settings())


def test_progress_counts_requests() -> None:
    from contextlib import contextmanager

    told: list[Any] = []

    class Step:
        def advance(self, amount: float = 1) -> None:
            told.append(amount)

        def describe(self, text: str) -> None: ...

    @contextmanager
    def show(description: str, total: float | None = None) -> Any:
        told.append((description, total))
        yield Step()

    tools = tools_of("gpt2")
    value.search(tools, rows_of(tools, REQUESTS[:2]), 1, settings(), show=show)
    assert told[0] == ("values of 2 requests", 2.0)
    assert sum(told[1:]) == 2
