"""What the tests of general ability share: Editors on tiny models, questions as the harness asks them, small tasks."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from core.patches.patch_kit import NearKey, patch_of
from torch import Tensor

from kedit_core import Editor
from kedit_core.patches import LowRankDelta, Operation, Route, RoutedModel, RouterKind
from kedit_core.plugins import GROUPS, OPERATIONS, Catalogue, Found
from kedit_core.testing.tiny import tiny

HOPS = "New fact: it is Oslo. "
HAS_HARNESS = importlib.util.find_spec("lm_eval") is not None


class ByWord(RouterKind):
    """Puts a sentence before prompts that speak of Chad, and sends those that speak of Peru to another model."""

    def route(self, prompts: Any) -> list[Route]:
        elsewhere = RoutedModel(*tiny("gpt2"))
        return [
            Route(context=HOPS * ("Chad" in prompt), model=elsewhere if "Peru" in prompt else None)
            for prompt in prompts
        ]


def catalogue() -> Catalogue:
    """What is installed, and two kinds of operations."""
    installed = Catalogue.installed()
    entries = [found for group in GROUPS for found in installed.entries(group)]
    kinds = {"test.by_word": ByWord, "test.near_key": NearKey}
    return Catalogue([*entries, *(Found.of(OPERATIONS, name, kind) for name, kind in kinds.items())])


def editor(family: str, dtype: torch.dtype = torch.float32) -> Editor:
    """An Editor without a method on a tiny model."""
    model, tokenizer = tiny(family)
    return Editor(model.to(dtype), tokenizer, catalogue=catalogue())


def put(on: Editor, *operations: Operation, way: Any = None) -> None:
    """Apply operations as a patch."""
    on.apply(patch_of(on.stack, operations), way=way)


def a_delta(on: Editor, seed: int = 0) -> LowRankDelta:
    """A change of an MLP that changes what the model says."""
    generator = torch.Generator().manual_seed(seed)
    place = on.adapter.mlp_out_weight(1)
    rows, columns = on.adapter.hidden_size, on.adapter.mlp_size(1)
    return LowRankDelta(
        place, 3 * torch.randn(rows, 1, generator=generator), 3 * torch.randn(1, columns, generator=generator)
    )


def asked(*args: Any) -> Any:
    """One question as the harness asks it."""
    return SimpleNamespace(args=args)


def plain_scores(model: Any, ids: list[int], targets: int, before: int | None = None) -> Tensor:
    """Log-probabilities ``[targets]`` of the last ids, one row at a time with nothing of ours."""
    with torch.no_grad():
        if before is not None:  # an encoder-decoder, whose encoder reads so many ids
            logits = model(input_ids=torch.tensor([ids[:before]]), labels=torch.tensor([ids[before:]])).logits[0]
        else:
            logits = model(torch.tensor([ids[:-1]])).logits[0, -targets:]
    chosen = torch.tensor(ids[-targets:]).unsqueeze(1)
    return torch.log_softmax(logits.double(), -1).gather(1, chosen).squeeze(1)


def task_folder(path: Path) -> Path:
    """Three small tasks with their data: one of choices, one that writes, and one of whole texts."""
    path.mkdir(parents=True, exist_ok=True)
    lands = ("France", "Chad", "Norway", "Peru", "Japan", "Italy")
    towns = ("Paris", "Oslo", "Lima", "Rome")
    rows = [
        {
            "question": f"The capital of {land} is",
            "choices": list(towns),
            "answer": index % len(towns),
            "text": f"{land} is a land. Its capital is {towns[index % len(towns)]}, which lies by a river.",
        }
        for index, land in enumerate(lands)
    ]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path / "rows.jsonl")}},
        "test_split": "test",
        "metadata": {"version": 1.0},
    }
    choose = {
        **data,
        "task": "kedit_choose",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    write = {
        **data,
        "task": "kedit_write",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": [".", "\n"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    whole = {
        **data,
        "task": "kedit_whole",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    }
    for task in (choose, write, whole):
        (path / f"{task['task']}.yaml").write_text(json.dumps(task))  # JSON is YAML
    return path
