"""Scripted answers: a model whose every word is known."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from kedit_core.evaluation import SENTENCE, StopRule, TargetTokens
from kedit_core.requests import EditRequest, Probe


class Scripted:
    """Answers from a script: prompt -> raw continuation, "nothing" for the rest; a "token" is a word or a sign."""

    def __init__(self, script: Mapping[str, str]) -> None:
        self.script = dict(script)
        self.asked: list[list[str]] = []

    def at_once(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _raw(self, prompt: str) -> str:
        return self.script.get(prompt, " nothing")

    def generate(self, prompts: Sequence[str], *, rule: StopRule = SENTENCE, max_new_tokens: int = 50) -> list[str]:
        self.asked.append(list(prompts))
        return [rule.cut(self._raw(prompt)) for prompt in prompts]

    def target_tokens(self, pairs: Sequence[tuple[str, str]]) -> list[TargetTokens]:
        self.asked.append([prompt for prompt, _ in pairs])
        rows = []
        for prompt, target in pairs:
            wanted = _words(target)
            said = (_words(self._raw(prompt)) + ["?"] * len(wanted))[: len(wanted)]
            ids, wanted_ids = tuple(map(_id, said)), tuple(map(_id, wanted))
            rows.append(TargetTokens(predicted=ids, target=wanted_ids, text=" ".join(said)))
        return rows


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|\S", text)


def _id(word: str) -> int:
    return int.from_bytes(word.encode(), "big")


@pytest.fixture
def scripted() -> Callable[[Mapping[str, str]], Scripted]:
    return Scripted


def oslo(number: int = 1, **changes: Any) -> EditRequest:
    """One case with a probe of every kind; every prompt carries the case's number."""
    case = f"case-{number}"
    fields: dict[str, Any] = {
        "case_id": case,
        "prompt": f"{case} The capital of Norway is",
        "subject": "Norway",
        "target_new": "New York",
        "aliases": ("NYC",),
        "ground_truth": "Oslo",
        "rephrase_prompts": (f"{case} Norway is ruled from", f"{case} Norway's capital:"),
        "locality": {
            "neighborhood": (
                Probe(prompt=f"{case} The capital of Sweden is", answers=("Stockholm",)),
                Probe(prompt=f"{case} The capital of Chad is"),
            ),
            "same_relation": (Probe(prompt=f"{case} The capital of Peru is", answers=("Lima",)),),
            "empty": (),
        },
        "portability": {"one_hop": (Probe(prompt=f"{case} Its river is the", answers=("Hudson", "Hudson River")),)},
    }
    return EditRequest(**{**fields, **changes})


@pytest.fixture
def make_request() -> Callable[..., EditRequest]:
    return oslo


@pytest.fixture
def make_context() -> Callable[..., Any]:
    """What the core's metrics read of an EditContext."""

    def make(
        protocols: Sequence[Any] = (), scenario: str = "batch", ways: Sequence[str] = ("merged",), **more: Any
    ) -> Any:
        stack = SimpleNamespace(patches=tuple(SimpleNamespace(way=way) for way in ways))
        defaults = {"method": None, "model": None, "records": {}}
        return SimpleNamespace(protocols=tuple(protocols), scenario=scenario, stack=stack, **{**defaults, **more})

    return make


def base_script(request: EditRequest) -> dict[str, str]:
    """What the unedited model says to every probe of :func:`oslo`."""
    case = request.case_id
    return {
        f"{case} The capital of Norway is": " Oslo. It is",
        f"{case} Norway is ruled from": " Oslo",
        f"{case} Norway's capital:": " Oslo",
        f"{case} The capital of Sweden is": " Stockholm.",
        f"{case} The capital of Chad is": " N'Djamena.",
        f"{case} The capital of Peru is": " Lima.",
        f"{case} Its river is the": " Glomma",
    }


@pytest.fixture
def base_of() -> Callable[[EditRequest], dict[str, str]]:
    return base_script


@pytest.fixture
def oracle_of() -> Callable[[EditRequest], dict[str, str]]:
    """A perfect edit: every new answer given, everything else as before."""

    def make(request: EditRequest) -> dict[str, str]:
        new = dict.fromkeys((request.prompt, *request.rephrase_prompts), " New York.")
        hops = {p.prompt: f" {p.answers[0]}.\n" for listed in request.portability.values() for p in listed}
        return {**base_script(request), **new, **hops}

    return make
