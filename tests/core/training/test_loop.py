"""The loop on a toy: accumulation, clipping, groups, what is left out, validation, early stop."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from core.training.toy_trainer import ALPHA_RATE, RATE, Toy, a_loop, a_toy, equal, moved
from torch import Tensor

from kedit_core.errors import HyperParamsError, InputError, MethodError
from kedit_core.training import Loop, Stepped
from kedit_core.training.averages import Averages
from kedit_core.training.gradients import Gradients


class Plain(Toy):
    """Without statistics, so that its loss is that of the points alone."""

    def _observe(self, batch: Tensor) -> None:
        pass


def plain(**settings: Any) -> Plain:
    toy = a_toy(**settings)
    return Plain(toy.context, toy.hparams)


def test_4_accumulating_micro_batches_is_one_large_batch(tmp_path: Path) -> None:
    """Acceptance check 4: three micro-batches of four move as one step of Adam on all twelve."""
    toy = plain()
    loop = a_loop(tmp_path, toy)
    drawn: list[Tensor] = []
    draw = toy.draw
    toy.draw = lambda *given: drawn.append(draw(*given)) or drawn[-1]  # type: ignore
    for _ in range(3):
        loop.advance()
    at = torch.zeros(3, requires_grad=True)
    adam = torch.optim.Adam([at], lr=RATE)
    (at - torch.cat(drawn)).square().mean().backward()
    torch.nn.utils.clip_grad_norm_([at], 100.0)
    adam.step()
    torch.testing.assert_close(toy.held["at"], at, atol=1e-6, rtol=0)
    assert torch.equal(toy.held["unused"], torch.ones(2))
    assert all(each.grad is None for each in toy.held.values())
    assert loop.counters.updates == 1


def test_9_each_group_moves_by_its_own_rate(tmp_path: Path) -> None:
    """Acceptance check 9: Adam's first step is as long as the rate."""
    toy = a_toy(accumulate=1)
    a_loop(tmp_path, toy).advance()
    assert abs(float(0.5 - toy.held["alpha"].detach())) == pytest.approx(ALPHA_RATE, rel=1e-3)
    assert toy.held["at"].detach().abs().tolist() == pytest.approx([RATE] * 3, rel=1e-3)


def test_the_norm_is_clipped(tmp_path: Path) -> None:
    norms = []
    for bound in (1e-3, 1e9):
        toy = plain(accumulate=1, clip=bound)
        loop = a_loop(tmp_path / str(bound), toy)
        loop.optimizer = torch.optim.SGD(toy.held.values(), lr=1.0)
        before = moved(toy)
        loop.advance()
        norms.append(float(sum((a - b).square().sum() for a, b in zip(moved(toy), before, strict=True)).sqrt()))
    assert abs(norms[0] - 1e-3) < 1e-6
    assert norms[1] > 0.1


def test_a_method_may_make_its_gradients_itself(tmp_path: Path) -> None:
    toy = plain(accumulate=2)
    given = plain(accumulate=2)

    def own(batch: Tensor) -> Stepped:
        with torch.no_grad():
            at = given.held["at"]
            loss = (at - batch).square().mean()
            grads = {"at": 2 * (at - batch).sum(0) / batch.numel(), "alpha": 2 * given.held["alpha"]}
        return Stepped(total=loss, losses={}, gradients=grads)

    given.run_step = own  # type: ignore[method-assign]
    for number, each in enumerate((toy, given)):
        loop = a_loop(tmp_path / str(number), each)
        for _ in range(6):
            loop.advance()
    for name in toy.held:
        torch.testing.assert_close(toy.held[name], given.held[name], atol=1e-6, rtol=0)
    given.run_step = lambda batch: Stepped(total=batch.sum(), losses={}, gradients={"at": torch.zeros(2)})  # type: ignore
    with pytest.raises(MethodError, match="no such parameter"):
        loop.advance()
    given.run_step = lambda batch: Stepped(total=batch.sum(), losses={})  # type: ignore[method-assign]
    with pytest.raises(MethodError, match="depends on no parameter"):
        loop.advance()


@pytest.mark.parametrize("kind", ["poison", "explode"])
def test_7_what_is_not_a_number_is_left_out(kind: str, tmp_path: Path) -> None:
    """Acceptance check 7: a whole step of such micro-batches moves nothing; one leaves the others."""
    toy = a_toy(**{kind: (1, 2, 3, 5)})
    loop = a_loop(tmp_path, toy)
    before = moved(toy)
    for _ in range(3):
        loop.advance()
    assert loop.counters.skipped == 3 and loop.counters.updates == 0
    assert equal(moved(toy), before)
    for _ in range(3):
        loop.advance()
    assert loop.counters.skipped == 4 and loop.counters.updates == 1
    assert all(bool(torch.isfinite(each).all()) for each in moved(toy))
    assert float(toy.statistics["count"]) == 8.0
    assert not torch.equal(toy.held["at"], before[0])


def test_nothing_but_what_is_not_a_number_stops_it(tmp_path: Path) -> None:
    toy = a_toy(poison=range(1, 200), iterations=200, val_interval=200)
    with pytest.raises(MethodError, match="the last 100 micro-batches"):
        a_loop(tmp_path, toy).run()


def test_gradients_too_large_together_stop_it(tmp_path: Path) -> None:
    toy = a_toy(accumulate=1)
    toy.run_step = lambda batch: Stepped(  # type: ignore[method-assign]
        total=batch.sum(), losses={}, gradients={"at": torch.full((3,), 3e38), "alpha": torch.full((1,), 3e38)}
    )
    with pytest.raises(MethodError, match="not finite at iteration 1"):
        a_loop(tmp_path, toy).advance()


class Scripted(Toy):
    """Its validations' values are given, one after the other."""

    script: Iterator[float]

    def validation(self) -> list[Tensor]:
        return super().validation()[:1]

    def validate_step(self, batch: Tensor) -> Stepped:
        found = super().validate_step(batch)
        value = (next(self.script), 1.0)
        return evolve(found, values={"loss/total": value, "acc/edit": value})


def scripted(values: Sequence[float], **settings: Any) -> Scripted:
    toy = a_toy(**settings)
    made = Scripted(toy.context, toy.hparams)
    made.script = iter(values)
    return made


@pytest.mark.parametrize(
    ("key", "script", "best"), [("loss/total", (3, 1, 2, 5, 4, 0.5), 1.0), ("acc/edit", (3, 9, 2, 9, 4, 10), 9.0)]
)
def test_8_it_stops_when_patience_is_out_and_keeps_the_best(
    key: str, script: Sequence[float], best: float, tmp_path: Path
) -> None:
    """Acceptance check 8; equal values are not better."""
    toy = scripted(script, iterations=1000, patience=25, early_stop_key=key)
    seen: dict[int, list[Tensor]] = {}
    margins: dict[int, float] = {}
    loop = a_loop(tmp_path, toy)
    validate = loop.validate

    def noted() -> dict[str, float]:
        seen[loop.counters.iteration], margins[loop.counters.iteration] = moved(toy), toy.margin
        return validate()

    loop.validate = noted  # type: ignore[method-assign]
    outcome = loop.run()
    assert outcome.stopped_early
    assert (outcome.iterations, outcome.best_iteration, outcome.best) == (50, 20, best)
    assert equal(moved(toy), seen[20]) and toy.margin == margins[20]
    assert not equal(seen[20], seen[50])
    assert outcome.best_values[key] == best


def test_the_goal_is_told_by_the_name_or_the_user() -> None:
    assert not a_toy(early_stop_key="loss/total").hparams.maximises
    assert a_toy(early_stop_key="edit/acc").hparams.maximises and a_toy(early_stop_key="ES").hparams.maximises
    assert not a_toy(early_stop_key="edit/acc", goal="minimise").hparams.maximises
    assert a_toy(early_stop_key="loss/total", goal="maximise").hparams.maximises


def test_a_key_that_is_not_measured_is_told(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"no value 'loss/edit'.*loss/total"):
        a_loop(tmp_path, a_toy(early_stop_key="loss/edit", iterations=1)).run()
    with pytest.raises(MethodError, match="is not a number"):
        a_loop(tmp_path, scripted([math.nan], iterations=1)).run()


def test_the_end_is_validated_even_between_intervals(tmp_path: Path) -> None:
    outcome = a_loop(tmp_path, a_toy(iterations=4)).run()
    assert [each["iteration"] for each in outcome.history] == [4.0]
    assert not outcome.stopped_early and outcome.seconds >= outcome.step_seconds > 0


def test_validation_values_are_averages_over_all_of_it(tmp_path: Path) -> None:
    toy = plain(iterations=1)
    (values,) = a_loop(tmp_path, toy).run().history
    pulls = [(toy.held["at"].detach() - batch).square().mean() for batch in toy.validation()]
    whole = float(sum(pull * len(batch) for pull, batch in zip(pulls, toy.validation(), strict=True)) / 9)
    assert values["loss/total"] == pytest.approx(whole, rel=1e-5)
    assert values["nll/pull"] == pytest.approx(float(sum(pulls)) / 3, rel=1e-5)
    assert values["perplexity/pull"] == pytest.approx(math.exp(values["nll/pull"]))


def test_what_follows_from_averages() -> None:
    averages = Averages()
    averages.add({"acc/pre": (3.0, 4.0), "acc/post": (1.0, 4.0), "nll/x": (8000.0, 8.0), "none": (0.0, 0.0)})
    other = Averages(averages.sums())
    other.merge(averages)
    assert other.values() == averages.values()
    assert averages.values()["drawdown"] == 0.5 and "none" not in averages.values()
    assert math.isfinite(averages.values()["perplexity/x"])


def test_the_originals_first_step_sums_one_micro_batch_more(tmp_path: Path) -> None:
    toy = plain(compat="published", accumulate=3)
    loop = a_loop(tmp_path, toy)
    steps = []
    for _ in range(10):
        before = loop.counters.updates
        loop.advance()
        steps += [loop.counters.iteration] * (loop.counters.updates - before)
    assert steps == [4, 7, 10]
    assert loop.sampler.batch(0)[0] == np.random.default_rng(3).permutation(41)[:4].tolist()
    assert not plain(compat="half").hparams.published_order
    with pytest.raises(HyperParamsError, match="known: published, half"):
        plain(compat="other")


def test_measurements_are_written_line_by_line(tmp_path: Path) -> None:
    outcome = a_loop(tmp_path, a_toy(iterations=20)).run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["iteration"]) for line in lines] == [
        ("training", 5), ("training", 10), ("validation", 10), ("training", 15), ("training", 20), ("validation", 20),
    ]  # fmt: skip
    assert lines[2]["loss/total"] == outcome.history[0]["loss/total"]
    assert {"gradient_norm", "lr", "skipped", "seconds", "loss/total"} <= lines[0].keys()


def test_tensorboard_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from kedit_core.errors import MissingExtraError
    from kedit_core.training.metrics import Metrics

    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"kedit-core\[tensorboard\]"):
        Metrics(tmp_path, tensorboard=True)
    Metrics(None, tensorboard=True).close()


def test_tensorboard_shows_no_value_of_another_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started over, its files are new; resumed, what came after the checkpoint is taken out of the picture."""
    from types import SimpleNamespace

    from kedit_core.training import metrics

    made: list[Any] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int | None) -> None:
            Path(folder).mkdir(exist_ok=True)
            self.purged, self.found, self.values = purge_step, sorted(p.name for p in Path(folder).iterdir()), []
            (Path(folder) / f"events-{len(made)}").touch()
            made.append(self)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.values.append((name, step))

        def close(self) -> None:
            pass

    monkeypatch.setattr(metrics, "check_tensorboard", lambda: SimpleNamespace(SummaryWriter=Writer))

    def loop(iterations: int) -> Loop[torch.Tensor]:
        made_loop = a_loop(tmp_path, a_toy(iterations=iterations))
        made_loop._metrics = metrics.Metrics(tmp_path, tensorboard=True)
        return made_loop

    loop(20).run()
    resumed = loop(40)
    resumed.resume()
    resumed.run()
    loop(20).run()
    assert [(each.purged, each.found) for each in made] == [(None, []), (21, ["events-0"]), (None, [])]
    assert ("validation/loss/total", 30) in made[1].values and min(step for _, step in made[1].values) == 25


@pytest.mark.parametrize("change", [{"dtype": torch.bfloat16}, {"leaf": False}, {"none": True}])
def test_parameters_that_cannot_be_trained_are_told(change: dict[str, Any], tmp_path: Path) -> None:
    toy = a_toy()
    if "none" in change:
        toy.held = {}
    elif "dtype" in change:
        toy.held["at"] = torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)
    else:
        toy.held["at"] = toy.held["at"] + 1
    with pytest.raises(MethodError, match=r"nothing to train|cannot be trained"):
        a_loop(tmp_path, toy)


def test_nothing_to_validate_on_is_refused(tmp_path: Path) -> None:
    toy = a_toy()
    toy.validation = list  # type: ignore[method-assign]
    with pytest.raises(InputError, match="validate"):
        a_loop(tmp_path, toy)


def test_a_gradient_of_an_unknown_parameter_in_a_checkpoint_is_told() -> None:
    with pytest.raises(MethodError, match="'other'"):
        Gradients({"at": torch.zeros(2)}, 1).restore(torch.zeros(2), ["other"])
