"""FT-L's bound holds exactly, in the numbers that the model stores."""

from __future__ import annotations

import pytest
import torch
from ft_tools import ALICE, FRANCE, REQUESTS, as_stored, editor_on

from kedit_core import Editor
from kedit_core.patches import DenseDelta
from kedit_methods_finetune.ft.limits import Limits, settled

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WEIGHT = "transformer.h.1.mlp.c_proj.weight"


def values(dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Numbers of very different size, of both signs, and zero."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-8, 1, 500, dtype=torch.float64).repeat(4)
    made = spread * torch.randn(2000, generator=generator, dtype=torch.float64)
    return torch.cat([made, torch.zeros(1, dtype=torch.float64)]).to(dtype)


def farthest(editor: Editor, places: dict[str, torch.Tensor]) -> float:
    """The largest distance of a weight from what it was, in float64."""
    now = dict(editor.model.named_parameters())
    return max(float((now[name].detach().double() - before.double()).abs().max()) for name, before in places.items())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epsilon", [5e-5, 5e-4, 2e-3, 0.1])
def test_ends_are_the_last_numbers_within(dtype: torch.dtype, epsilon: float) -> None:
    anchor = values(dtype)
    limits = Limits.around(anchor, epsilon)
    for end, side in ((limits.low, -1.0), (limits.high, 1.0)):
        assert end.dtype == dtype
        assert bool(((end.double() - anchor.double()).abs() <= epsilon).all())
        beyond = torch.nextafter(end, torch.full_like(end, side * torch.inf))
        # differences of float64 numbers are rounded themselves
        slack = 1e-14 if dtype == torch.float64 else 0.0
        assert bool(((beyond.double() - anchor.double()).abs() > epsilon - slack).all())
    assert bool((limits.low <= anchor).all() and (anchor <= limits.high).all())


def test_clip_of_a_wide_master_stays_within_when_rounded() -> None:
    anchor = values(torch.bfloat16)
    limits = Limits.around(anchor, 5e-4)
    master = anchor.float() + 6e-4 * torch.randn(2001, generator=torch.Generator().manual_seed(1)).sign()
    limits.clip(master)
    stored = master.to(torch.bfloat16)
    assert not bool(limits.excess(stored).any())
    assert limits.saturated(stored) + limits.stuck == 1.0
    assert 0 < limits.stuck < 1
    # half way there is not at an end
    assert Limits.around(torch.ones(4), 0.5).saturated(torch.tensor([0.5, 1.0, 1.25, 1.5])) == 0.5


# ------------------------------------------------------------------ acceptance check 1
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_no_weight_moves_further_than_the_bound(dtype: torch.dtype, family: str) -> None:
    epsilon = 0.004
    editor = editor_on(family, "ft_l", dtype=dtype, norm_constraint=epsilon)
    before = {name: parameter.detach().clone() for name, parameter in editor.model.named_parameters()}
    patch = editor.compute(REQUESTS)
    editor.apply(patch)
    assert 0.9 * epsilon < farthest(editor, before) <= epsilon
    now = dict(editor.model.named_parameters())
    told = patch.state.config["saturated"]
    assert sorted(told) == sorted(patch.base.tensors)
    for name, share in told.items():
        assert Limits.around(before[name], epsilon).saturated(now[name].detach()) == pytest.approx(share, abs=1e-3)
    assert max(told.values()) > 0.3  # a step of 0.01 is beyond the bound at once


def test_anchor_says_what_a_sequence_may_do() -> None:
    """Rounds that each keep their bound drift beyond it together, unless it is measured from the base."""
    epsilon = 0.004
    for anchor, bounded in (("round", False), ("base", True)):
        editor = editor_on("gpt2", "ft_l", torch.float32, norm_constraint=epsilon, anchor=anchor)
        base = {name: parameter.detach().clone() for name, parameter in editor.model.named_parameters()}
        for request in REQUESTS:
            before = {name: parameter.detach().clone() for name, parameter in editor.model.named_parameters()}
            editor.apply(editor.compute(request))
            if anchor == "round":
                assert farthest(editor, before) <= epsilon
        assert (farthest(editor, base) <= epsilon) is bounded


def test_sums_that_round_beyond_the_bound_are_taken_back() -> None:
    """On top of other patches a delta within the bound may make a weight beyond it; what is settled does not."""
    editor = editor_on("gpt2", "ft_l", torch.float32, norm_constraint=1e-3)
    generator = torch.Generator().manual_seed(0)
    context = editor.context()
    shape = tuple(editor.adapter.down_weight(1).shape)
    noise = DenseDelta(WEIGHT, torch.randn(shape, generator=generator))
    with context.provisional() as writer:
        writer.add([noise])
        before = editor.adapter.down_weight(1).detach().T.clone()
        limits = Limits.around(before, 1e-3)
        ends = torch.where(torch.rand(before.shape, generator=generator) < 0.5, limits.low, limits.high)
        raw = DenseDelta(WEIGHT, (ends - before).T)

        def made(delta: DenseDelta) -> torch.Tensor:
            with context.provisional() as inner:
                inner.add([delta])
                return editor.adapter.down_weight(1).detach().T.clone()

        assert bool(limits.excess(made(raw)).any())
        (kept,) = settled(context, {WEIGHT: raw}, {WEIGHT: limits})
        assert not bool(limits.excess(made(kept)).any())
        # and no further back than rounding asks for
        assert float((made(kept).double() - ends.double()).abs().max()) < 1e-6
        assert torch.equal(editor.adapter.down_weight(1).detach().T, before)


def test_a_bound_below_the_dtypes_precision_is_told() -> None:
    """In bfloat16 most weights of this size have no neighbour within 5e-5, so hardly anything can be learnt."""
    editor = editor_on("llama", "ft_l", torch.bfloat16, norm_constraint=5e-5)
    codes = {warning.code for warning in editor.edit(FRANCE, evaluate=False).warnings}
    assert codes == {"bound_below_precision", "target_not_reached"}
    editor = editor_on("llama", "ft_l", torch.float32, norm_constraint=5e-5)
    warnings = editor.edit(FRANCE, evaluate=False).warnings
    assert [warning.code for warning in warnings] == ["target_not_reached"]
    assert warnings[0].number == 1.0


def test_no_bound_no_report() -> None:
    editor = editor_on("gpt2", "ft_l", torch.float32, norm_constraint=None)
    before = {name: parameter.detach().clone() for name, parameter in editor.model.named_parameters()}
    patch = editor.compute(ALICE)
    assert "saturated" not in patch.state.config
    editor.apply(patch)
    assert farthest(editor, before) > 0.01
    assert {as_stored(editor, op).shape for op in patch.operations} == {
        before[op.place].shape for op in patch.operations
    }
