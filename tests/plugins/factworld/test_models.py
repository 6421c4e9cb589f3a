"""Both shipped models answer every prompt of the shipped cases, and run in float32 whatever the file holds."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open

from kedit_core.requests import EditRequest
from kedit_factworld import files
from kedit_factworld.knowledge import answered, exact_match, greedy_answers
from kedit_factworld.plugin import edit_cases
from kedit_factworld.world import Statement, build_world

pytestmark = pytest.mark.slow

QUICK = 40
SCRIPTS = Path(__file__).parents[3] / "plugins" / "kedit-factworld" / "scripts"


@pytest.fixture
def read_context(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, gone again afterwards with what it imports."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module("read_context")
    for name in ("read_context", "refine", "train", "rows"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module", params=files.MODELS)
def loaded(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = files.model_folder(request.param)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def questions(case: EditRequest) -> list[tuple[str, str]]:
    """Every prompt of a case with what the unedited model must say."""
    truth = case.ground_truth or ""
    rows = [(prompt, truth) for prompt in (case.prompt, *case.rephrase_prompts)]
    rows += [(probe.prompt, probe.answers[0]) for group in case.locality.values() for probe in group]
    rows += [(probe.prompt, probe.meta["before"]) for group in case.portability.values() for probe in group]
    return rows


def wrong(loaded: tuple[Any, Any], cases: list[EditRequest]) -> list[tuple[str, str, str]]:
    rows = sorted({row for case in cases for row in questions(case)})
    said = greedy_answers(*loaded, [prompt for prompt, _ in rows])
    return [(*row, text) for row, text in zip(rows, said, strict=True) if text != f" {row[1]}."]


def test_some_cases_are_answered(loaded: tuple[Any, Any]) -> None:
    assert wrong(loaded, random.Random(0).sample(edit_cases(), QUICK)) == []


@pytest.mark.slow
def test_all_cases_are_answered(loaded: tuple[Any, Any]) -> None:
    assert wrong(loaded, edit_cases()) == []


@pytest.mark.slow
def test_the_models_know_the_world_as_reported(loaded: tuple[Any, Any]) -> None:
    rates = exact_match(*loaded, build_world(), limit=1000)
    assert rates["trained_templates"] >= 0.97
    assert rates["held_out_templates"] >= 0.95
    assert rates["two_hop_seen_subjects"] >= 0.99


@pytest.mark.parametrize("kind", files.READERS)
def test_readers_know_the_world_and_read_their_context(kind: str, read_context: ModuleType) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = files.model_folder(kind)
    loaded = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rates = exact_match(*loaded, build_world(), limit=400)
    assert rates["trained_templates"] >= 0.97
    assert rates["held_out_templates"] >= 0.95
    read = read_context.reading(*loaded, build_world(), 100)
    assert read["same"] >= 0.95 and read["reworded"] >= 0.95 and read["memory"] >= 0.85


@pytest.mark.parametrize("kind", files.MODELS + files.READERS)
@pytest.mark.parametrize("dtype", [None, "auto"])
def test_half_precision_in_the_file_is_float32_in_the_model(kind: str, dtype: str | None) -> None:
    from transformers import AutoModelForCausalLM

    folder = files.model_folder(kind)
    with safe_open(str(folder / "model.safetensors"), framework="pt") as stored:
        assert {stored.get_tensor(name).dtype for name in stored.keys()} == {torch.float16}  # noqa: SIM118
    chosen = {} if dtype is None else {"dtype": dtype}
    model = AutoModelForCausalLM.from_pretrained(folder, **chosen)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_answered_agrees_with_greedy_decoding(loaded: tuple[Any, Any]) -> None:
    true = list(build_world().statements(held_out=True))[::400]
    false = [Statement(s.subject, s.relation, s.prompt, "Atlantis") for s in true[:3]]
    statements = true + false
    said = greedy_answers(*loaded, [s.prompt for s in statements])
    hits = answered(*loaded, statements)
    assert hits == [text == f" {s.object}." for text, s in zip(said, statements, strict=True)]
    assert not any(hits[-3:]) and any(hits)
    assert answered(*loaded, []) == []
