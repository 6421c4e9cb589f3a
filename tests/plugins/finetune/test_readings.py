"""Losses are looked at when something depends on them, and else a few steps at a time; that changes no result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ft_tools import REQUESTS, editor_on
from torch import Tensor

from kedit_core import Editor
from kedit_core.errors import MethodError
from kedit_core.testing.tiny import tiny
from kedit_methods_finetune import readings
from kedit_methods_finetune.ft.batches import Part
from kedit_methods_finetune.lora.training import Chunk
from kedit_methods_finetune.questions import Questions
from kedit_methods_finetune.readings import Readings

METHODS = ("ft_m", "ft_bf", "lora", "adalora")


def editor_of(method: str, **hparams: Any) -> Editor:
    if method.startswith("ft"):
        return editor_on("gpt2", method, **hparams)
    model, tokenizer = tiny("gpt2")
    return Editor(model, tokenizer, method, {"num_steps": 4, **hparams})


def looks_of(monkeypatch: pytest.MonkeyPatch, every: int) -> list[int]:
    """How many losses each look at the device reads, with ``every`` steps between two; a list that grows."""
    seen: list[int] = []
    original = Readings._look

    def look(self: Readings) -> None:
        if self._waiting:
            seen.append(len(self._waiting))
        original(self)

    monkeypatch.setattr(Readings, "_look", look)
    monkeypatch.setattr(readings, "look_every", lambda device: every)
    return seen


def test_an_accelerator_is_looked_at_seldom_and_a_cpu_always() -> None:
    assert readings.look_every(torch.device("cpu")) == 1
    assert readings.look_every(torch.device("cuda")) > 1


@pytest.mark.parametrize("method", METHODS)
def test_without_a_stop_rule_losses_are_read_together(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"stop_loss": 0.0, "batch_size": 2}  # two chunks in each of four epochs
    usual = editor_of(method, **settings).compute(REQUESTS)
    seen = looks_of(monkeypatch, every=3)
    seldom = editor_of(method, **settings).compute(REQUESTS)
    assert seen == [3, 3, 2]
    assert seldom.to_bytes() == usual.to_bytes()
    assert len(seldom.state.config["epochs"]) == 4
    assert seldom.state.config["steps"] == 8


@pytest.mark.parametrize("method", ["ft_m", "lora"])
def test_with_a_stop_rule_each_loss_is_read_before_its_step(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = editor_of(method, stop_loss=0.0, num_steps=8).compute(REQUESTS[:1]).state.config["epochs"]
    stop = (whole[3] + whole[4]) / 2
    assert min(whole[:4]) > stop > whole[4]
    seen = looks_of(monkeypatch, every=100)
    stopped = editor_of(method, stop_loss=stop, num_steps=8).compute(REQUESTS[:1]).state.config
    assert seen == [1] * 5
    assert (len(stopped["epochs"]), stopped["steps"]) == (5, 4)


@pytest.mark.parametrize("every", [1, 3, 100])
@pytest.mark.parametrize("method", ["ft_m", "lora"])
def test_a_loss_that_is_not_finite_is_told_with_its_step(
    method: str, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = looks_of(monkeypatch, every)
    calls = iter(range(100))
    cls: Any = Part if method == "ft_m" else Chunk
    original = cls.losses

    def losses(self: Any, *args: Any, **settings: Any) -> Tensor:
        found: Tensor = original(self, *args, **settings)
        return found * float("nan") if next(calls) == 2 else found

    monkeypatch.setattr(cls, "losses", losses)
    with pytest.raises(MethodError, match="the loss is nan after 2 steps; lower lr"):
        editor_of(method, stop_loss=0.0, num_steps=9).compute(REQUESTS[:1])
    assert seen == {1: [1, 1, 1], 3: [3], 100: [9]}[every]


@pytest.mark.parametrize("method", METHODS)
def test_facts_are_laid_out_once_and_not_in_every_step(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = Questions.of.__func__  # type: ignore[attr-defined]

    def of(cls: Any, forward: Any, facts: Any, *args: Any) -> Questions:
        made.append(len(facts))
        found: Questions = original(cls, forward, facts, *args)
        return found

    monkeypatch.setattr(Questions, "of", classmethod(of))
    editor_of(method, batch_size=2, stop_loss=0.0).compute(REQUESTS)
    assert made == [2, 1]
