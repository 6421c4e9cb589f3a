"""What training minimises: closed forms, bounds whose multipliers climb, margins, schedules."""

from __future__ import annotations

import math

import pytest
import torch
from ke_tools import trainer_on

from kedit_methods_meta.edited import LowRank
from kedit_methods_meta.ke.objective import Margin, bounded, smoothed_nll, weight_change
from kedit_methods_meta.ke.schedule import warm_linear


def test_smoothed_labels_of_three_classes_by_hand() -> None:
    probability = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1]], dtype=torch.float64)
    found = smoothed_nll(probability.log() + 7.0, torch.tensor([1, 1]), 0.1)
    # the true class keeps 0.9, each of the two others has 0.05
    by_hand = [
        -0.9 * math.log(0.2) - 0.05 * math.log(0.5) - 0.05 * math.log(0.3),
        -0.9 * math.log(0.8) - 0.05 * math.log(0.1) - 0.05 * math.log(0.1),
    ]
    torch.testing.assert_close(found, torch.tensor(by_hand, dtype=torch.float64), rtol=1e-12, atol=0)
    plain = torch.nn.functional.cross_entropy(probability.log(), torch.tensor([1, 1]), reduction="none")
    torch.testing.assert_close(smoothed_nll(probability.log(), torch.tensor([1, 1]), 0.0), plain)


def test_it_is_least_at_the_smoothed_label() -> None:
    wanted = torch.full((5,), 0.025, dtype=torch.float64)
    wanted[3] = 0.9
    found = wanted.log().unsqueeze(0).requires_grad_()
    [gradient] = torch.autograd.grad(smoothed_nll(found, torch.tensor([3]), 0.1).sum(), [found])
    torch.testing.assert_close(gradient, torch.zeros(1, 5, dtype=torch.float64), rtol=0, atol=1e-15)


def test_the_change_of_weights_is_that_of_the_formed_ones() -> None:
    torch.manual_seed(0)
    edit = torch.tensor([0, 0, 1, 1, 1])
    edits = {
        name: LowRank(torch.randn(5, m).double(), torch.randn(5, n).double(), edit)
        for name, (m, n) in {"a": (7, 3), "b": (4, 6)}.items()
    }
    formed = [
        (change.outputs[edit == e].T @ change.inputs[edit == e]).pow(2).mean().sqrt()
        for change in edits.values()
        for e in (0, 1)
    ]
    torch.testing.assert_close(weight_change(edits, 2), torch.stack(formed).mean(), rtol=1e-12, atol=0)


def test_a_bound_is_the_lagrangian_with_its_multiplier_climbing() -> None:
    alpha = torch.tensor(3.0, requires_grad=True)
    value = torch.tensor(0.5, requires_grad=True)
    total = bounded(alpha, value, 0.2)
    assert float(total.detach()) == pytest.approx(3 * 0.3)
    down = torch.autograd.grad(total, [alpha, value])
    assert [float(each) for each in down] == [pytest.approx(-0.3), pytest.approx(3.0)]


@pytest.mark.parametrize(("margin", "climbs"), [(1e-9, True), (1e3, False)])
def test_multipliers_climb_above_the_margin_and_fall_below_it(margin: float, climbs: bool) -> None:
    trainer = trainer_on("gpt2", margin=margin, margin_min=0.0, weight_margin=margin, weight_margin_min=0.0)
    alphas = trainer.alphas
    assert set(alphas) == {"alpha.kl", "alpha.weights"}
    groups = [
        {"params": [tensor], "lr": trainer.rates().get(name, 1e-6)} for name, tensor in trainer.parameters().items()
    ]
    optimizer = trainer.optimizer(groups)
    for _ in range(8):
        batch = trainer.draw([0, 1], torch.Generator().manual_seed(0))
        stepped = trainer.run_step(batch)
        before = {name: float(alpha.detach()) for name, alpha in alphas.items()}
        grads = torch.autograd.grad(stepped.total, list(trainer.parameters().values()))
        for parameter, grad in zip(trainer.parameters().values(), grads, strict=True):
            parameter.grad = grad
        optimizer.step()
        trainer.after_update()
        for name, alpha in alphas.items():
            now = float(alpha.detach())
            assert now > before[name] if climbs else now < before[name] or now == before[name] == 0.0
            assert now >= 0
    assert all((float(alpha.detach()) > 1) == climbs for alpha in alphas.values())
    assert climbs or all(float(alpha.detach()) == 0 for alpha in alphas.values())


def test_multipliers_are_kept_between_nothing_and_their_greatest_value() -> None:
    trainer = trainer_on("gpt2", alpha_max=50.0)
    alpha = trainer.alphas["alpha.kl"]
    with torch.no_grad():
        alpha.fill_(-2)
    trainer.after_update()
    assert float(alpha.detach()) == 0 and not trainer.context.warnings
    with torch.no_grad():
        alpha.fill_(51)
    trainer.after_update()
    assert float(alpha.detach()) == 50
    assert [(each.code, each.number) for each in trainer.context.warnings] == [("alpha_at_limit", 50.0)]


def test_margins_are_tightened_only_when_edits_succeed() -> None:
    trainer = trainer_on("gpt2", margin=0.01, margin_min=0.005, weight_margin=1e-3, weight_margin_min=1e-7)
    for success, wanted in ((0.9, 0.01), (0.91, 0.008), (0.2, 0.008), (1.0, 0.0064), (1.0, 0.00512), (1.0, 0.005)):
        trainer.after_validation({"edit/acc": success})
        assert trainer.state()["alpha.kl"] == pytest.approx(wanted, rel=1e-12)
    assert trainer.state()["alpha.weights"] == pytest.approx(1e-3 * 0.8**4)
    again = trainer_on("gpt2", margin=0.01, margin_min=0.005, weight_margin=1e-3, weight_margin_min=1e-7)
    again.load_state(trainer.state())
    assert again.state() == trainer.state()


def test_a_margin_stops_at_its_lowest() -> None:
    margin = Margin(1.0, 0.3)
    seen = []
    for _ in range(4):
        margin.tighten(0.5)
        seen.append(margin.value)
    assert seen == [0.5, 0.3, 0.3, 0.3]


def test_rates_rise_and_fall_in_straight_lines_in_every_group() -> None:
    first, second = (torch.zeros(1, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 2.0}, {"params": [second], "lr": 10.0}])
    schedule = warm_linear(optimizer, 4, 12)
    seen = []
    for _ in range(14):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    factors = [0, 0.25, 0.5, 0.75, *(1 - i / 8 for i in range(8)), 0, 0]
    assert seen == [[pytest.approx(2 * f), pytest.approx(10 * f)] for f in factors]
