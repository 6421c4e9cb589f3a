"""The losses by hand: acceptance check 4, and that copies counted are copies repeated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kedit_methods_memory.hparams.t_patcher import Form, MemoryForm, TPatcherHyperParams
from kedit_methods_memory.t_patcher.objective import act_loss, divergence, edit_loss, memory_loss, reduced

# three memories, two rows, one neuron
MEMORY = torch.tensor([[-4.0], [-2.5], [1.0]], dtype=torch.float64)
ROWS = torch.tensor([[0.5], [2.0]], dtype=torch.float64)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def largest(values: Sequence[float], k: int) -> list[float]:
    return sorted(values, reverse=True)[:k]


def by_hand(name: str) -> Callable[[Sequence[float]], float]:
    top, _, kind = name.rpartition("_")

    def loss(exponents: Sequence[float]) -> float:
        if name == "non_use":
            return 0.0
        kept = list(exponents) if kind == "exp" else [each for each in exponents if each > 0]
        kept = largest(kept, int(top[3:])) if top else kept
        if not kept:
            return 0.0
        return mean([each if kind == "margin" else math.exp(each) for each in kept])

    return loss


FORMS = ("exp", "margin", "expmargin", "top1_exp", "top2_exp", "top2_margin", "top3_expmargin", "top99_exp", "non_use")


@pytest.mark.parametrize("margin", [0.0, 1.0])
@pytest.mark.parametrize("name", FORMS)
def test_check_4_the_activation_loss_by_hand(name: str, margin: float) -> None:
    wanted = by_hand(name)([margin - 0.5, margin - 2.0])
    assert float(act_loss(ROWS, Form.parse(name), margin)) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("margins", [(0.0, 0.0), (3.0, -3.0)])
@pytest.mark.parametrize("second", FORMS)
@pytest.mark.parametrize("first", ["top4_exp", "margin", "non_use"])
def test_check_4_the_memory_loss_by_hand(first: str, second: str, margins: tuple[float, float]) -> None:
    relative = [m - r + margins[0] for m in (-4.0, -2.5, 1.0) for r in (0.5, 2.0)]
    absolute = [m - margins[1] for m in (-4.0, -2.5, 1.0)]
    form = MemoryForm.parse(f"{first}+{second}")
    found = float(memory_loss(MEMORY, ROWS, form, margins))
    assert found == pytest.approx(by_hand(first)(relative) + by_hand(second)(absolute), rel=1e-12)
    tiled = float(memory_loss(MEMORY, ROWS, form, margins, tiled=True))
    assert tiled == pytest.approx(by_hand(first)(relative) + by_hand(second)([*absolute, *absolute]), rel=1e-12)


@given(
    values=st.lists(st.floats(-6, 6), min_size=1, max_size=12),
    copies=st.integers(1, 9),
    name=st.sampled_from(FORMS),
)
def test_values_counted_are_values_repeated(values: list[float], copies: int, name: str) -> None:
    exponents = torch.tensor(values, dtype=torch.float64)
    repeated = reduced(exponents.repeat(copies), Form.parse(name))
    assert float(reduced(exponents, Form.parse(name), copies)) == pytest.approx(float(repeated), rel=1e-12)


def test_the_gradient_of_values_counted_is_that_of_values_repeated() -> None:
    def gradient(function: Callable[[Tensor], Tensor]) -> Tensor:
        x = torch.tensor([0.3, -1.0, 2.0, 1.5], dtype=torch.float64, requires_grad=True)
        function(x).backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        return x.grad

    form = Form("exp", 7)
    counted, repeated = gradient(lambda x: reduced(x, form, 3)), gradient(lambda x: reduced(x.repeat(3), form))
    assert torch.allclose(counted, repeated, rtol=0, atol=1e-12)


def test_huge_exponents_stay_finite_and_pull_on() -> None:
    x = torch.tensor([200.0, 29.0], requires_grad=True)
    loss = reduced(x, Form("exp"))
    loss.backward()  # type: ignore[no-untyped-call]
    assert bool(torch.isfinite(loss)) and x.grad is not None
    assert float(x.grad[0]) == pytest.approx(math.exp(30) / 2, rel=1e-5)
    assert float(x.grad[1]) == pytest.approx(math.exp(29) / 2, rel=1e-5)


def test_the_edit_loss_with_label_smoothing() -> None:
    logits = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.5, 0.25]], dtype=torch.float64)
    logprobs = logits - logits.exp().sum(-1, keepdim=True).log()
    nll = -(logprobs[0, 1] + logprobs[1, 0]) / 2
    assert float(edit_loss(logits, torch.tensor([1, 0]))) == pytest.approx(float(nll), rel=1e-12)
    smooth = -logprobs.sum() / 2
    wanted = (1 - 0.1 - 0.05) * nll + 0.05 * smooth
    assert float(edit_loss(logits, torch.tensor([1, 0]), 0.1)) == pytest.approx(float(wanted), rel=1e-12)


def test_the_divergence_is_that_of_distributions() -> None:
    before, after = torch.randn(4, 7, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
    p, q = before.softmax(-1), after.softmax(-1)
    assert float(divergence(before, after)) == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-10)
    assert float(divergence(before, before)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", ["top_exp", "top0_exp", "exponential", "kl_3", ""])
def test_names_of_no_loss_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="there is no loss"):
        Form.parse(name)


def test_settings_name_losses_that_there_are() -> None:
    from kedit_core.errors import HyperParamsError

    for wrong in (
        {"act_loss": "top5"},
        {"memory_loss": "exp"},
        {"memory_loss": "exp+top_exp"},
        {"memory_loss": "kl_0"},
    ):
        with pytest.raises(HyperParamsError):
            TPatcherHyperParams.from_dict(wrong)
    assert MemoryForm.parse("kl_50").kl == 50 and MemoryForm.parse("non_use") == MemoryForm()
