"""The training loop on a made-up problem: a vector that is pulled to drawn points."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from torch import Tensor

from kedit_core.errors import InputError, MethodError
from kedit_methods_memory.serac.training.loop import Loop, Schedule, Stepped
from kedit_methods_memory.serac.training.sampler import Sampler
from kedit_methods_memory.serac.training.store import Store

POINTS = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) + 2


class Pull:
    """Parameters and the step of the problem; ``poison`` makes the loss of some calls not a number."""

    def __init__(self, poison: Sequence[int] = ()) -> None:
        self.parameters = {"at": torch.zeros(3, requires_grad=True), "unused": torch.ones(2, requires_grad=True)}
        self.poison, self.calls = set(poison), 0

    def draw(self, indices: Sequence[int], generator: torch.Generator) -> Tensor:
        return POINTS[list(indices)] + 0.1 * torch.randn(len(indices), 3, generator=generator)

    def step(self, batch: Tensor) -> Stepped:
        loss = (self.parameters["at"] - batch).square().mean()
        if torch.is_grad_enabled():
            self.calls += 1
            if self.calls in self.poison:
                loss = loss * math.nan
        return Stepped(total=loss, losses={"all": loss}, values={"loss/total": (float(loss.detach()), 1.0)})


def a_loop(
    folder: Path, problem: Pull, step: Callable[[Any], Stepped] | None = None, size: int = 4, **schedule: Any
) -> Loop[Tensor]:
    defaults = {"iterations": 40, "accumulate": 3, "val_interval": 10, "save_interval": 7, "patience": 1000}
    store = Store(folder)
    store.begin(anew=False)
    return Loop(
        problem.parameters,
        dict.fromkeys(problem.parameters, 0.05),
        step or problem.step,
        problem.draw,
        Sampler(len(POINTS), size, seed=3),
        [POINTS[:5]],
        Schedule(**{**defaults, **schedule}),
        store,
        {"data": "points"},
    )


def test_accumulating_micro_batches_is_one_large_batch(tmp_path: Path) -> None:
    """Three micro-batches of four move as one step of Adam on all twelve."""
    problem = Pull()
    loop = a_loop(tmp_path, problem)
    drawn: list[Tensor] = []
    draw = problem.draw
    loop._draw = lambda *given: drawn.append(draw(*given)) or drawn[-1]  # type: ignore[func-returns-value]
    for _ in range(3):
        loop.advance()
    plain = torch.zeros(3, requires_grad=True)
    adam = torch.optim.Adam([plain], lr=0.05)
    (plain - torch.cat(drawn)).square().mean().backward()
    torch.nn.utils.clip_grad_norm_([plain], 100.0)
    adam.step()
    torch.testing.assert_close(problem.parameters["at"], plain, atol=1e-6, rtol=0)
    assert torch.equal(problem.parameters["unused"], torch.ones(2))
    assert all(each.grad is None for each in problem.parameters.values())


def test_the_norm_is_clipped(tmp_path: Path) -> None:
    problem, free = Pull(), Pull()
    norms: list[float] = []
    for one, bound in ((problem, 1e-3), (free, 1e9)):
        loop = a_loop(tmp_path / str(bound), one, accumulate=1, clip=bound)
        loop.optimizer = torch.optim.SGD([one.parameters["at"]], lr=1.0)  # type: ignore[assignment]
        loop.advance()
        norms.append(float(one.parameters["at"].detach().norm()))
    assert abs(norms[0] - 1e-3) < 1e-6
    assert norms[1] > 0.1


@pytest.mark.parametrize("at", [20, 17, 7])
def test_resuming_is_bit_for_bit_the_same(at: int, tmp_path: Path) -> None:
    """Also in the middle of an accumulation, and in the middle of an epoch."""
    whole = Pull()
    outcome = a_loop(tmp_path / "whole", whole).run()
    first = Pull()
    loop = a_loop(tmp_path / "two", first)
    for _ in range(at):
        loop.advance()
        if loop.iteration % 10 == 0:
            loop.validate()
    loop.save()
    second = Pull()
    resumed = a_loop(tmp_path / "two", second)
    resumed.resume()
    again = resumed.run()
    assert torch.equal(second.parameters["at"], whole.parameters["at"])
    assert again.history == outcome.history
    assert (again.best, again.best_iteration) == (outcome.best, outcome.best_iteration)


def test_another_run_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training to resume"):
        a_loop(tmp_path, Pull()).resume()
    loop = a_loop(tmp_path, Pull())
    loop.save()
    loop._identity = {"data": "others"}
    with pytest.raises(InputError, match="differs in data"):
        loop.resume()


def test_a_kill_while_saving_leaves_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it happens: while writing, before the old file is moved, and between the two renamings."""
    problem = Pull()
    loop = a_loop(tmp_path, problem)
    for _ in range(6):
        loop.advance()
    loop.save()
    saved = problem.parameters["at"].detach().clone()
    for _ in range(3):
        loop.advance()
    replace = Path.replace
    for killed_at in ("last.safetensors", ".kedit-"):

        def dying(self: Path, target: Any, name: str = killed_at) -> Path:
            if self.name.startswith(name):
                raise KeyboardInterrupt
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            loop.save()
        monkeypatch.setattr(Path, "replace", replace)
        fresh = Pull()
        again = a_loop(tmp_path, fresh)
        again.resume()
        assert again.iteration == 6
        assert torch.equal(fresh.parameters["at"], saved)


@pytest.mark.parametrize("killed", [6, 9])
def test_a_kill_after_a_new_best_leaves_what_is_resumed_and_the_best_in_step(killed: int, tmp_path: Path) -> None:
    """Whoever resumes and stops at once has the best parameters, and says of the right iteration that they are best."""
    loop = a_loop(tmp_path, Pull(), accumulate=1, val_interval=2, save_interval=5)
    advance = loop.advance

    def dying() -> None:
        if loop.iteration == killed:
            raise KeyboardInterrupt
        advance()

    loop.advance = dying  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    assert loop._best.iteration == 2 * (killed // 2)
    problem = Pull()
    resumed = a_loop(tmp_path, problem)
    resumed.resume()
    resumed.schedule = evolve(resumed.schedule, iterations=resumed.iteration)
    outcome = resumed.run()
    with torch.no_grad():
        of_these = problem.step(POINTS[:5]).values["loss/total"][0]
    assert (outcome.best_iteration, outcome.best) == (loop._best.iteration, loop._best.value)
    assert of_these == outcome.best


def test_a_loss_that_is_not_a_number_is_left_out(tmp_path: Path) -> None:
    """All micro-batches of a step: nothing moves. One of them: the others count."""
    problem = Pull(poison=(1, 2, 3, 5))
    loop = a_loop(tmp_path, problem)
    for _ in range(3):
        loop.advance()
    assert loop.skipped == 3
    assert torch.equal(problem.parameters["at"], torch.zeros(3))
    for _ in range(3):
        loop.advance()
    assert loop.skipped == 4
    assert torch.isfinite(problem.parameters["at"]).all()
    assert not torch.equal(problem.parameters["at"], torch.zeros(3))


def test_gradients_that_are_not_finite_stop_it(tmp_path: Path) -> None:
    problem = Pull()

    def step(batch: Tensor) -> Stepped:
        loss = torch.sqrt(problem.parameters["at"].sum() * 0.0)
        return Stepped(total=loss, losses={}, values={})

    loop = a_loop(tmp_path, problem, step, accumulate=1)
    with pytest.raises(MethodError, match="not finite"):
        loop.advance()


def scripted(values: Sequence[float], problem: Pull) -> Callable[[Any], Stepped]:
    """A step whose validation losses are given, one after the other."""
    script: Iterator[float] = iter(values)

    def step(batch: Tensor) -> Stepped:
        found = problem.step(batch)
        if torch.is_grad_enabled():
            return found
        return Stepped(total=found.total, losses={}, values={"loss/total": (next(script), 1.0)})

    return step


def test_it_stops_when_patience_is_out_and_keeps_the_best(tmp_path: Path) -> None:
    problem = Pull()
    seen: dict[int, Tensor] = {}
    loop = a_loop(tmp_path, problem, scripted([3, 1, 2, 5, 4, 0.5], problem), iterations=1000, patience=25)
    validate = loop.validate

    def noted() -> dict[str, float]:
        seen[loop.iteration] = problem.parameters["at"].detach().clone()
        return validate()

    loop.validate = noted  # type: ignore[method-assign]
    outcome = loop.run()
    assert outcome.stopped_early
    assert (outcome.iterations, outcome.best_iteration, outcome.best) == (50, 20, 1.0)
    assert torch.equal(problem.parameters["at"], seen[20])
    assert not torch.equal(seen[20], seen[50])


def test_the_end_is_validated_even_between_intervals(tmp_path: Path) -> None:
    outcome = a_loop(tmp_path, Pull(), iterations=4).run()
    assert [each["iteration"] for each in outcome.history] == [4.0]
    assert not outcome.stopped_early


def test_a_sampler_takes_each_record_once_an_epoch() -> None:
    sampler = Sampler(11, 3, seed=1)
    epochs = [[index for _ in range(3) for index in sampler.next()[0]] for _ in range(4)]
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    again = Sampler(11, 3, seed=1)
    assert [index for _ in range(3) for index in again.next()[0]] == epochs[0]
    assert Sampler(11, 3, seed=1, rank=1).next()[0] != epochs[0][:3]
    with pytest.raises(InputError):
        Sampler(0, 3, seed=1)
