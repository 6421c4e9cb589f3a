"""The value search of MEMIT (the block's output) and PMET (both projections), against a plain one and by its rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from attrs import evolve
from locate_tools import MIRA, OREN, PARIS, TEMPLATES, spanned
from spread_tools import MEMIT_PARTS, PMET_PARTS, PlainSearch
from torch.utils._python_dispatch import TorchDispatchMode

from kedit_core import EditRequest
from kedit_core.errors import InputError, MethodError
from kedit_core.forward import ForwardTools, TokenBoundary
from kedit_core.models import AdapterRegistry
from kedit_core.models.builtin import plugin
from kedit_core.testing.tiny import FAMILIES, tiny
from kedit_methods_locate import value
from kedit_methods_locate.descent import GreedySchedule
from kedit_methods_locate.hparams import LocateHyperParams
from kedit_methods_locate.problem import Problem
from kedit_methods_locate.rows import Rewrite, rewrite
from kedit_methods_locate.value import Values, search

pytestmark = pytest.mark.slow

# on the tiny models this one reaches its target within a few steps, the others do not
EASY = evolve(PARIS, prompt="France", target_new="Eskel")
REQUESTS = (PARIS, MIRA, OREN, EASY)
# these round to float32 in their attention or norms whatever the model's dtype
ROUNDING = {"gptj": 1e-5, "gpt_neo": 1e-5}

HOWS: Mapping[str, Mapping[str, Any]] = {
    "mlp": {},
    "block": {"parts": MEMIT_PARTS, "loss_layer": 1},
    "both": {"parts": PMET_PARTS, "schedule": GreedySchedule(1.0, 0.2)},
}
each_how = pytest.mark.parametrize("how", HOWS)


def tools_of(family: str, dtype: torch.dtype = torch.float64, fast: bool = True, **over: Any) -> ForwardTools:
    model, tokenizer = tiny(family, dtype=dtype, **over)
    view = AdapterRegistry(plugin.register_adapters()).for_model(model)
    return ForwardTools(model, view, TokenBoundary(tokenizer, view.is_encoder_decoder), fast=fast)


def plain(tools: ForwardTools) -> ForwardTools:
    return ForwardTools(tools.model, tools.view, tools.boundary, fast=False)


def rows_of(tools: ForwardTools, requests: Sequence[EditRequest] = REQUESTS) -> list[Rewrite]:
    return [rewrite(tools.boundary, spanned(request), TEMPLATES) for request in requests]


def settings(**values: Any) -> LocateHyperParams:
    return LocateHyperParams(**{"v_num_grad_steps": 8, "v_lr": 0.3, "clamp_norm_factor": 4.0, **values})


def how_for(tools: ForwardTools, how: str) -> dict[str, Any]:
    """An encoder's blocks give no logits."""
    return {**HOWS[how], **({"loss_layer": None} if tools.view.is_encoder_decoder else {})}


def same(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-8) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= tolerance * max(1.0, float(wanted.abs().max()))


def same_values(found: Values, wanted: Values, tolerance: float = 1e-8) -> None:
    assert found.deltas.keys() == wanted.deltas.keys()
    for part in wanted.deltas:
        same(found.deltas[part], wanted.deltas[part], tolerance)
        same(found.clean.outputs[part], wanted.clean.outputs[part], tolerance)
        same(found.targets[part], wanted.targets[part], tolerance)
    same(found.clean.keys, wanted.clean.keys, tolerance)
    same(found.loss, wanted.loss, tolerance)
    same(found.probability, wanted.probability, tolerance)
    assert found.factors == wanted.factors
    for a, b in zip(found.traces, wanted.traces, strict=True):
        assert a == pytest.approx(b, rel=max(tolerance, 1e-8))


# ------------------------------------------------------------------ against the plain search
CASES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "opt": ("opt", {}),
    "t5": ("t5", {}),
    "llama": ("llama", {}),
}


def against_plain(tools: ForwardTools, request: EditRequest, how: str, layer: int, **more: Any) -> tuple[float, ...]:
    """Compare one request's search with the plain one; gives back the factors."""
    kept = how_for(tools, how)
    loss_layer, schedule, parts = kept.get("loss_layer"), kept.get("schedule"), kept.get("parts", ("mlp",))
    pmet = {"factor": schedule.factor, "kl_stop": schedule.kl_stop} if schedule else {}
    hparams = settings(**more)
    wanted = PlainSearch(tools.model, tools.boundary, tools.view, layer, parts).find(
        request,
        steps=hparams.v_num_grad_steps,
        lr=hparams.v_lr,
        decay=hparams.v_weight_decay,
        kl_factor=hparams.kl_factor,
        clamp=hparams.clamp_norm_factor,
        stop=hparams.early_stop_loss,
        loss_layer=loss_layer,
        **pmet,
    )
    found = search(tools, rows_of(tools, [request]), layer, hparams, **kept)
    for part in parts:
        same(found.deltas[part][0], wanted.deltas[part])
        same(found.clean.outputs[part][0], wanted.outputs[part])
        same(found.targets[part][0], wanted.targets[part])
        assert bool(found.deltas[part].any())
    same(found.clean.keys[0], wanted.keys)
    assert found.traces[0] == pytest.approx(tuple(wanted.losses), rel=1e-8)
    assert found.factors[0] == tuple(wanted.factors)
    return found.factors[0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("how", ["block", "both"])
@pytest.mark.parametrize("request_", [MIRA, EASY], ids=["mira", "easy"])
def test_is_the_plain_search(case: str, how: str, request_: EditRequest) -> None:
    family, over = CASES[case]
    against_plain(tools_of(family, **over), request_, how, 0, v_num_grad_steps=8 if request_ is EASY else 4)


@pytest.mark.parametrize("how", ["block", "both"])
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
def test_clamp_at_every_step_and_the_later_layers(how: str, fast: bool) -> None:
    # behind the last block only a subject that ends the prompt is heard
    for layer, request in ((1, MIRA), (2, OREN)):
        tools = tools_of("gpt2", fast=fast)
        kept = {**HOWS, "block": {"parts": MEMIT_PARTS, "loss_layer": 2}}[how]
        found = search(
            tools, rows_of(tools, [request]), layer, settings(clamp_norm_factor=0.02, v_num_grad_steps=4), **kept
        )
        pmet = {"factor": 1.0, "kl_stop": 0.2} if how == "both" else {}
        wanted = PlainSearch(tools.model, tools.boundary, tools.view, layer, kept["parts"]).find(
            request, steps=4, lr=0.3, clamp=0.02, loss_layer=kept.get("loss_layer"), **pmet
        )
        for part in kept["parts"]:
            same(found.deltas[part][0], wanted.deltas[part])
            assert float(wanted.deltas[part].norm()) == pytest.approx(0.02 * float(wanted.values[part].norm()))


# ------------------------------------------------------------------ PMET's control flow
def test_the_schedule_of_a_hand_made_trace() -> None:
    """PMET's acceptance check 6: greedy at step 3, no longer at 4. One request's essence has moved too far to stop."""
    schedule = GreedySchedule(1.0, 0.01)
    factor, factors = torch.ones(2, dtype=torch.float64), []
    for greedy in (False, False, False, True, False, False):
        factors.append(factor.tolist())
        factor, done = schedule.judge(torch.tensor([greedy, False]), torch.tensor([0.02, 0.0], dtype=torch.float64))
        assert not bool(done.any())
    assert [each[0] for each in factors] == [1, 1, 1, 1, 0.1, 1]
    assert [each[1] for each in factors] == [1] * 6


def test_the_schedule_stops_where_the_essence_has_hardly_moved() -> None:
    schedule = GreedySchedule(3.0, 0.01)
    kl = torch.tensor([0.01, 0.0100001, 0.0, 0.5])
    factor, done = schedule.judge(torch.tensor([True, True, False, False]), kl)
    assert done.tolist() == [True, False, False, False]  # at most, and only when greedy
    torch.testing.assert_close(factor, torch.tensor([0.3, 0.3, 3.0, 3.0]))
    assert factor.dtype == kl.dtype


def test_the_schedule_is_followed_by_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trace of check 6 with the search around it: the losses are those of the factors."""
    tools = tools_of("gpt2")
    trace = iter([False, False, False, True, False, False])
    seen: list[Any] = []
    original = Problem.losses

    def losses(self: Problem, delta: torch.Tensor) -> Any:
        seen.append(original(self, delta))
        return seen[-1]

    monkeypatch.setattr(Problem, "losses", losses)
    monkeypatch.setattr(Problem, "greedy", lambda self, losses: torch.tensor([next(trace)]))
    schedule = GreedySchedule(1.0, 0.0)
    hparams = settings(v_num_grad_steps=6, kl_factor=1.0)
    found = search(tools, rows_of(tools, [PARIS]), 0, hparams, parts=PMET_PARTS, schedule=schedule)
    assert found.factors[0] == (1, 1, 1, 1, 0.1, 1)
    for factor, total, terms in zip(found.factors[0], found.traces[0], seen, strict=True):
        wanted = float((factor * terms.nll.mean() + terms.kl + terms.decay).detach())
        assert total == pytest.approx(wanted, rel=1e-12)


def test_a_greedy_request_goes_on_with_a_tenth_until_its_essence_is_back() -> None:
    tools = tools_of("gpt2")
    (rows,) = rows_of(tools, [EASY])
    hparams = settings(v_num_grad_steps=20, v_lr=0.5)
    for kl_stop, length in ((0.0, 20), (100.0, None)):
        schedule = GreedySchedule(1.0, kl_stop)
        found = search(tools, [rows], 0, hparams, parts=PMET_PARTS, schedule=schedule)
        assert found.factors[0][0] == 1
        if length is None:  # stops at the first greedy pass
            assert len(found.factors[0]) < 10
            assert set(found.factors[0]) == {1}
        else:
            assert len(found.factors[0]) == length
            assert 0.1 in found.factors[0]


def test_those_that_go_on_when_most_are_done_keep_their_factors() -> None:
    class Scripted:
        factor = 1.0
        script = iter([([1.0, 2.0, 3.0, 4.0], [2]), ([1.0, 2.0, 3.0, 4.0], [0, 2]), ([5.0, 6.0], [])])

        def judge(self, greedy: torch.Tensor, kl: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            factors, done = next(self.script)
            assert len(greedy) == len(factors)
            return kl.new_tensor(factors), torch.tensor([n in done for n in range(len(factors))])

    tools = tools_of("gpt2")
    hparams = settings(v_num_grad_steps=3, early_stop_loss=0.0)
    rewrites = rows_of(tools, [PARIS] * 4)
    found = search(tools, rewrites, 0, hparams, parts=PMET_PARTS, schedule=Scripted())  # type: ignore[arg-type]
    assert found.factors == ((1, 1), (1, 2, 2), (1,), (1, 4, 4))


def test_the_greedy_test_is_by_ids_in_every_context_and_ties_count() -> None:
    tools = tools_of("gpt2")
    rewrites = rows_of(tools, [PARIS, MIRA, OREN])
    problem = Problem(tools, rewrites, 1, settings())
    losses = problem.losses(torch.zeros(3, 1, 32, dtype=torch.float64))
    asked = torch.zeros_like(losses.asked)  # all logits equal: every id is a most likely one
    assert problem.greedy(evolve(losses, asked=asked)).tolist() == [True, True, True]
    targets = [i for each in rewrites for _ in each.rows for i in each.target]
    cells = [n for n, each in enumerate(rewrites) for _ in each.rows for _ in each.target]
    for cell, (target, owner) in enumerate(zip(targets, cells, strict=True)):
        beaten = asked.clone()
        beaten[cell, target - 1] = 1e-9  # one id, at one position of one context
        assert problem.greedy(evolve(losses, asked=beaten)).tolist() == [owner != n for n in range(3)]
    asked[torch.arange(len(targets)), torch.tensor(targets)] = 1.0
    assert problem.greedy(evolve(losses, asked=asked)).tolist() == [True, True, True]


def test_a_small_loss_stops_before_the_schedule_is_asked() -> None:
    tools = tools_of("gpt2")
    hparams = settings(early_stop_loss=1e6)
    found = search(tools, rows_of(tools, [PARIS]), 0, hparams, parts=PMET_PARTS, schedule=GreedySchedule(2.0, 0.0))
    assert len(found.traces[0]) == 1
    assert found.factors[0] == (2,)
    assert not any(bool(delta.any()) for delta in found.deltas.values())


# ------------------------------------------------------------------ each part by itself (PMET's check 5)
def test_each_part_has_its_own_decay() -> None:
    tools = tools_of("llama")
    problem = Problem(tools, rows_of(tools), 1, settings(v_weight_decay=0.7), PMET_PARTS)
    zero = torch.zeros(4, 2, 32, dtype=torch.float64)
    assert not bool(problem.losses(zero).decay.any())
    delta = torch.randn(zero.shape, generator=torch.Generator().manual_seed(0), dtype=zero.dtype)
    wanted = torch.zeros(4, dtype=torch.float64)
    for number, part in enumerate(PMET_PARTS):
        clean = problem.clean.value_of(part)
        wanted += 0.7 * delta[:, number].norm(dim=1) / clean.norm(dim=1) ** 2
    same(problem.losses(delta).decay, wanted, 1e-12)


def test_each_part_has_its_own_clamp() -> None:
    """Norms of the parts differ, so a common limit would show; both clamps are reached."""
    tools = tools_of("llama")
    found = search(tools, rows_of(tools), 0, settings(clamp_norm_factor=0.1), parts=PMET_PARTS)
    limits = {part: 0.1 * found.clean.value_of(part).norm(dim=1) for part in found.deltas}
    for part, delta in found.deltas.items():
        assert bool((delta.norm(dim=1) <= limits[part] * (1 + 1e-6)).all())
        assert bool((delta.norm(dim=1) >= limits[part] * (1 - 1e-6)).any())
    first, second = limits.values()
    assert float((first / second).log().abs().min()) > 0.05


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize(
    ("family", "over", "parallel"),
    [
        ("gptj", {}, True),
        ("gpt_neox", {}, True),
        ("gpt_neox", {"use_parallel_residual": False}, False),
        ("gpt2", {}, False),
        ("llama", {}, False),
    ],
)
def test_gradients_of_both_parts_are_equal_in_parallel_blocks_only(
    family: str, over: Mapping[str, Any], parallel: bool, fast: bool
) -> None:
    """PMET's check 7; also away from zero, where both vectors differ."""
    tools = tools_of(family, fast=fast, **over)
    problem = Problem(tools, rows_of(tools), 0, settings(), PMET_PARTS)
    delta = torch.zeros(4, 2, 32, dtype=torch.float64)
    problem.losses(delta)  # fixes the essence's base
    delta = torch.randn(delta.shape, generator=torch.Generator().manual_seed(0), dtype=delta.dtype).requires_grad_()
    for term in ("nll", "kl"):
        (gradient,) = torch.autograd.grad(getattr(problem.losses(delta), term).sum(), delta)
        mlp, attention = gradient.unbind(1)
        scale = float(gradient.abs().max())
        assert scale > 0
        apart = float((mlp - attention).abs().max()) / scale
        assert apart < 1e-6 if parallel else apart > 1e-2


# ------------------------------------------------------------------ batches, paths, groups
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "t5"])
@each_how
def test_batched_equals_one_by_one(family: str, how: str) -> None:
    tools = tools_of(family)
    rewrites = rows_of(tools)
    together = search(tools, rewrites, 0, settings(), **how_for(tools, how))
    for i, each in enumerate(rewrites):
        alone = search(tools, [each], 0, settings(), **how_for(tools, how))
        for part in alone.deltas:
            same(together.deltas[part][i], alone.deltas[part][0])
            same(together.clean.outputs[part][i], alone.clean.outputs[part][0])
        assert together.traces[i] == pytest.approx(alone.traces[0], rel=1e-8)
        assert together.factors[i] == alone.factors[0]


@each_how
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
def test_batched_equals_one_by_one_with_different_stops(how: str, fast: bool) -> None:
    tools = tools_of("gpt2", fast=fast)
    rewrites = rows_of(tools)
    kept = how_for(tools, how)
    traces = search(tools, rewrites, 0, settings(early_stop_loss=0.0), **kept).traces
    limit = sorted(min(trace[:5]) for trace in traces)[1] + 1e-6
    together = search(tools, rewrites, 0, settings(early_stop_loss=limit), **kept)
    assert len({len(trace) for trace in together.traces}) > 2
    for i, each in enumerate(rewrites):
        alone = search(tools, [each], 0, settings(early_stop_loss=limit), **kept)
        for part in alone.deltas:
            same(together.deltas[part][i], alone.deltas[part][0])
        assert together.traces[i] == pytest.approx(alone.traces[0], rel=1e-8)
        assert together.factors[i] == alone.factors[0]
        same(together.loss[i], alone.loss[0])
        same(together.probability[i], alone.probability[0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["block", "both"])
def test_fast_left_padded_equals_plain_right_padded(family: str, how: str) -> None:
    # gemma2's softmax overflows in float64 (its mask is float64's least number, its softmax float32)
    dtype, tolerance = (torch.float32, 1e-3) if family == "gemma2" else (torch.float64, ROUNDING.get(family, 1e-8))
    tools = tools_of(family, dtype)
    kept = how_for(tools, how)
    rewrites = rows_of(tools, [PARIS, OREN])
    problem = Problem(tools, rewrites, 0, settings(), kept["parts"], kept.get("loss_layer"))
    assert problem._tail.fast
    assert problem._tail.plan.batch.side == ("right" if tools.view.is_encoder_decoder else "left")
    hparams = settings(v_num_grad_steps=4, v_lr=0.1)
    same_values(
        search(tools, rewrites, 0, hparams, **kept), search(plain(tools), rewrites, 0, hparams, **kept), tolerance
    )


@each_how
def test_groups_that_fit_the_memory_change_nothing(how: str) -> None:
    tools = tools_of("gpt2")
    rewrites = rows_of(tools)
    split = search(tools, rewrites, 0, settings(), memory_budget=1, **how_for(tools, how))
    same_values(split, search(tools, rewrites, 0, settings(), **how_for(tools, how)))


# ------------------------------------------------------------------ looking at the losses now and then
@pytest.mark.parametrize("how", ["mlp", "both"])
@pytest.mark.parametrize("every", [3, 100])
def test_looking_seldom_changes_nothing(how: str, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tools_of("gpt2")
    rewrites = rows_of(tools)
    hparams = settings(v_num_grad_steps=12, early_stop_loss=6.0)
    often = search(tools, rewrites, 0, hparams, **HOWS[how])
    assert len({len(trace) for trace in often.traces}) > 1
    assert min(len(trace) for trace in often.traces) < 12
    monkeypatch.setattr(value, "look_every", lambda device: every)
    same_values(search(tools, rewrites, 0, hparams, **HOWS[how]), often)


class Waits(TorchDispatchMode):
    """Counts the operations for which a host waits for an accelerator: a number read, a boolean mask made indices."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def counting(self, method: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return method(*args, **kwargs)

        return counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = (
            [index for index in args[1] if index is not None] if name in ("index", "index_put", "index_put_") else []
        )
        self.count += name in ("_local_scalar_dense", "nonzero", "masked_select", "equal")
        self.count += any(index.dtype == torch.bool for index in masks)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj"])
@each_how
def test_no_pass_between_two_looks_waits(family: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value, "look_every", lambda device: 100)
    tools = tools_of(family)
    rewrites = rows_of(tools)
    counts = []
    for steps in (3, 3, 9):  # the first compares both paths
        with Waits() as waits, monkeypatch.context() as patched:
            for name in ("tolist", "cpu", "numpy"):
                patched.setattr(torch.Tensor, name, waits.counting(getattr(torch.Tensor, name)))
            search(tools, rewrites, 0, settings(v_num_grad_steps=steps), **how_for(tools, how))
        counts.append(waits.count)
    assert counts[1] > 0  # the look at the end
    assert counts[2] == counts[1]


@pytest.mark.parametrize("every", [1, 4])
def test_a_loss_that_is_not_finite_is_told_with_its_step(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value, "look_every", lambda device: every)
    tools = tools_of("gpt2")
    original, calls = Problem.losses, iter(range(100))

    def losses(self: Problem, delta: torch.Tensor) -> Any:
        found = original(self, delta)
        return evolve(found, kl=found.kl * torch.tensor([1.0, float("nan")])) if next(calls) == 2 else found

    monkeypatch.setattr(Problem, "losses", losses)
    with pytest.raises(MethodError, match="loss is nan after 2 steps"):
        search(tools, rows_of(tools, [PARIS, MIRA]), 0, settings(early_stop_loss=0.0), parts=MEMIT_PARTS)


def test_an_accelerator_is_looked_at_seldom_and_a_cpu_always() -> None:
    assert value.look_every(torch.device("cpu")) == 1
    assert value.look_every(torch.device("cuda")) > 1


# ------------------------------------------------------------------ where the likelihood is read, dtypes, refusals
def test_the_likelihood_is_read_after_the_loss_layer_and_the_essence_after_the_last() -> None:
    tools = tools_of("gpt2")
    rewrites = rows_of(tools, [PARIS])
    zero = torch.zeros(1, 1, 32, dtype=torch.float64)
    early, last = (Problem(tools, rewrites, 0, settings(), MEMIT_PARTS, layer) for layer in (1, 2))
    ordinary = Problem(tools, rewrites, 0, settings(), MEMIT_PARTS)
    losses = [problem.losses(zero) for problem in (early, last, ordinary)]
    assert torch.equal(losses[1].nll, losses[2].nll)
    assert float((losses[0].nll - losses[2].nll).abs().max()) > 1e-2
    assert early.base is not None and ordinary.base is not None
    same(early.base, ordinary.base)
    # one before the layer is read after the layer
    below = Problem(tools, rewrites, 1, settings(), MEMIT_PARTS, 0)
    at = Problem(tools, rewrites, 1, settings(), MEMIT_PARTS, 1)
    assert torch.equal(below.losses(zero).nll, at.losses(zero).nll)


def test_loss_layers_that_are_not_there_are_refused() -> None:
    tools = tools_of("gpt2")
    with pytest.raises(InputError, match="v_loss_layer 3 is not in this model of 3 layers"):
        search(tools, rows_of(tools), 0, settings(), parts=MEMIT_PARTS, loss_layer=3)
    t5 = tools_of("t5")
    with pytest.raises(InputError, match="encoder"):
        search(t5, rows_of(t5), 0, settings(), parts=MEMIT_PARTS, loss_layer=1)
    search(t5, rows_of(t5, [EASY]), 0, settings(v_num_grad_steps=1), parts=MEMIT_PARTS, loss_layer=3)  # the last


def test_several_parts_have_no_delta_of_their_own() -> None:
    tools = tools_of("gpt2")
    found = search(tools, rows_of(tools, [EASY]), 0, settings(v_num_grad_steps=1), parts=PMET_PARTS)
    for get in (lambda: found.delta, lambda: found.clean.value, lambda: found.clean.output):
        with pytest.raises(MethodError, match="mlp_out, attn_out"):
            get()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@each_how
def test_vectors_and_targets_are_float32_whatever_the_model(dtype: torch.dtype, how: str) -> None:
    tools = tools_of("llama", dtype)
    found = search(tools, rows_of(tools, [PARIS, EASY]), 0, settings(), **HOWS[how])
    for part, delta in found.deltas.items():
        assert delta.dtype == found.targets[part].dtype == torch.float32
        assert bool(delta.any())
    assert found.traces[0][-1] < found.traces[0][0]


def test_the_model_is_left_as_found_also_on_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tools_of("gpt_neox")
    model = tools.model

    def look() -> Any:
        return (
            [p.requires_grad for p in model.parameters()],
            [p._version for p in model.parameters()],
            [module.training for module in model.modules()],
            [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        )

    model.train()
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    before = look()
    for fast in (tools, plain(tools)):
        search(fast, rows_of(fast, [PARIS]), 0, settings(), **HOWS["both"])
        assert look() == before
    monkeypatch.setattr(type(tools.view), "head", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        search(plain(tools), rows_of(tools, [PARIS]), 0, settings(), **HOWS["block"])
    assert look() == before
    assert all(parameter.grad is None for parameter in model.parameters())
