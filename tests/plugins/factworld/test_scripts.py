"""The scripts that make the data: importable, and each runs for a step or two."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from kedit_factworld import files
from kedit_factworld.world import build_world

SCRIPTS = Path(__file__).parents[3] / "plugins" / "kedit-factworld" / "scripts"
NAMES = ("rows", "train", "refine", "read_context", "make_demonstrations", "make_edits", "pack", "make_stats")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules, gone again afterwards."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def quick(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The same, without the measurements over the whole world."""
    monkeypatch.setattr(scripts["train"], "exact_match", lambda *_, **__: {})
    monkeypatch.setattr(scripts["refine"], "in_context_accuracy", lambda *_, **__: {})
    monkeypatch.setattr(scripts["read_context"], "reading", lambda *_, **__: {})
    return scripts


def shipped_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(files.model_folder("factworld:llama"))


def test_rows_are_full_and_mark_objects_and_subjects(scripts: dict[str, ModuleType]) -> None:
    tokenizer = shipped_tokenizer()
    rows = scripts["rows"].packed_rows(build_world(), 0, tokenizer, 128)
    assert len(rows) > 300
    for row in rows[:20]:
        assert len(row.ids) == len(row.is_object) == len(row.visible_until) == 128
        assert tokenizer.decode([i for i, is_object in zip(row.ids, row.is_object, strict=True) if is_object]).count(
            "."
        )
        assert all(until >= position for position, until in enumerate(row.visible_until))


def test_a_subjects_earlier_tokens_are_seen_up_to_its_last_one(scripts: dict[str, ModuleType]) -> None:
    prompt = shipped_tokenizer()("By profession, Vera Novak is a", return_offsets_mapping=True)
    reach = scripts["rows"].subject_reach("By profession, Vera Novak is a", "Vera Novak", prompt["offset_mapping"])
    near = [r for r in reach if r < 10]
    assert near == list(range(len(near), 0, -1)) and len(near) >= 1


def test_the_learning_rate_warms_up_stays_and_falls_to_zero(scripts: dict[str, ModuleType]) -> None:
    rate = scripts["train"].learning_rate
    assert rate(0, 1000) == pytest.approx(1 / 200)
    assert rate(500, 1000) == 1.0
    assert rate(999, 1000) == pytest.approx(1 / 250)


@pytest.mark.slow
@pytest.mark.parametrize("kind", files.MODELS)
def test_training_refining_and_packing_run(kind: str, quick: dict[str, ModuleType], tmp_path: Path) -> None:
    trained, packed = tmp_path / "trained", tmp_path / "packed"
    once = ["--threads", "1", "--steps", "2", "--out", str(trained)]
    quick["train"].main([kind, *once])
    quick["train"].main([kind, *once, "--resume"])
    quick["refine"].main([kind, *once, "--in-context", "0.5"])
    report = json.loads((trained / "training_report.json").read_text())
    assert [leg["steps"] for leg in report["legs"]] == [2, 2] and len(report["refinements"]) == 1
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (trained / name).read_bytes() == (files.model_folder(f"factworld:{kind}") / name).read_bytes()

    reader = tmp_path / "reader"
    steps = ["--threads", "1", "--steps", "4", "--documents", "2"]
    quick["read_context"].main([kind, *steps, "--source", str(trained), "--out", str(reader)])
    report = json.loads((reader / "training_report.json").read_text())
    assert report["reading"]["steps"] == 4 and len(report["refinements"]) == 1
    assert any(
        not torch.equal(now, before)
        for now, before in zip(*(quick["train"].load(each)[0].parameters() for each in (reader, trained)), strict=True)
    )

    model, _ = quick["train"].load(trained)
    positions = model.config.n_positions if kind == "gpt2" else model.config.max_position_embeddings
    assert positions == 512
    quick["pack"].write_folder(model, trained, torch.float16, packed)
    first = (packed / "model.safetensors").read_bytes()
    quick["pack"].write_folder(model, trained, torch.float16, packed)
    assert (packed / "model.safetensors").read_bytes() == first
    assert json.loads((packed / "config.json").read_text())["dtype"] == "float32"


def test_questions_after_a_new_fact_ask_for_it_or_for_another(scripts: dict[str, ModuleType]) -> None:
    its_world, rng = build_world(), random.Random(0)
    facts = list(its_world.facts)
    said = [scripts["read_context"].item(its_world, rng, facts, 1.0) for _ in range(50)]
    assert all(each.statement == f"{each.prompt} {each.answer}" for each in said)
    said = [scripts["read_context"].item(its_world, rng, facts, 0.0) for _ in range(400)]
    told = [each.statement.endswith(f" {each.answer}") for each in said]
    assert 0.5 < sum(told) / len(told) < 0.8


def test_documents_count_answers_and_not_the_new_facts(scripts: dict[str, ModuleType]) -> None:
    tokenizer = shipped_tokenizer()
    batch = scripts["read_context"].documents(build_world(), tokenizer, random.Random(1), 8, 0.5)
    assert batch.ids.shape == batch.weights.shape == (8, batch.ids.shape[1])
    for ids, weights in zip(batch.ids, batch.weights, strict=True):
        start = tokenizer("New Fact:")["input_ids"]
        assert ids[: len(start)].tolist() == start and not weights[: len(start)].any()
        full = weights == 1.0
        assert 0 < full.sum() < 0.5 * len(ids)
        assert not weights[ids == tokenizer.eos_token_id].any()


def test_the_shipped_demonstrations_come_out_again(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    scripts["make_demonstrations"].main(["--out", str(tmp_path / "demonstrations.jsonl")])
    assert (tmp_path / "demonstrations.jsonl").read_bytes() == files.demonstrations_file().read_bytes()


def test_packing_tells_answers_that_change(scripts: dict[str, ModuleType]) -> None:
    pack = scripts["pack"]
    model, tokenizer = scripts["train"].load(files.model_folder("factworld:gpt2"))
    prompts = ["The capital of Estonia is", "Oslo is a city in"]
    assert pack.differing(model, pack.rounded(model, torch.float16), tokenizer, prompts) == []
    other = pack.rounded(model, torch.float16)
    torch.nn.init.zeros_(other.lm_head.weight)
    changed = pack.differing(model, other, tokenizer, prompts)
    assert [(prompt, said) for prompt, said, _ in changed] == list(zip(prompts, (" Tallinn.", " Norway."), strict=True))


@pytest.mark.slow
def test_the_shipped_weights_give_the_shipped_cases(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    """Byte by byte, the first of them: a shorter run ends earlier and is else the same."""
    made = tmp_path / "edits.jsonl"
    scripts["make_edits"].main(["--threads", "1", "--size", "12", "--out", str(made)])
    assert made.read_bytes().splitlines() == files.cases_file().read_bytes().splitlines()[:12]
