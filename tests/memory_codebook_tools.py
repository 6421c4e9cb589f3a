"""What the tests of GRACE and MELO share: small Editors, requests, and how a model answers rows of ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from attrs import evolve
from torch import Tensor

from kedit_core import Editor, EditRequest
from kedit_core.testing.tiny import tiny

FRANCE = EditRequest(prompt="The capital of France is", subject="France", target_new="Port Lumen", case_id="a")
ALICE = EditRequest(prompt="Alice works in the city of", subject="Alice", target_new="Paris", case_id="b")
BOB = EditRequest(prompt="The mother tongue of Bob is", subject="Bob", target_new="French", case_id="c")
FACTS = (FRANCE, ALICE, BOB)
# answers of one token: what one vector in a random model can bring about, unlike the second token of a longer one
SHORT = tuple(evolve(fact, target_new=word) for fact, word in zip(FACTS, ("Port", "city", "Lumen"), strict=True))
# every kind of MLP and norm; those that add little to the first are for the whole suite
FAMILIES = (
    "gpt2",
    *(pytest.param(each, marks=pytest.mark.slow) for each in ("gpt_neox", "opt", "gemma2")),
    "llama",
    "t5",
)
UNRELATED = ("A river flows", "The day was long and nobody came", "Because of the rain", "I know")


def editor_on(family: str, method: str, dtype: torch.dtype = torch.float32, seed: int = 0, **hparams: Any) -> Editor:
    """An Editor on a tiny model."""
    model, tokenizer = tiny(family, seed=seed, dtype=dtype)
    return Editor(model, tokenizer, method, hparams)


def padded(editor: Editor, prompts: Sequence[str], side: str) -> dict[str, Tensor]:
    """Prompts as a batch for the model itself, padded on one side, positions counted over tokens."""
    rows = [editor.context().tokens.prompt(prompt).ids for prompt in prompts]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), editor.context().tokens.pad_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, where], mask[i, where] = torch.tensor(row), 1
    named = {"input_ids": ids, "attention_mask": mask}
    if editor.adapter.is_encoder_decoder:
        named["decoder_input_ids"] = torch.zeros((len(rows), 1), dtype=torch.long)
    elif editor.adapter.position_embeddings is not None and side == "left":
        named["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return named


def logits_of(editor: Editor, prompts: Sequence[str], side: str = "right") -> Tensor:
    """``[rows, columns, vocabulary]`` of the live model."""
    with torch.no_grad():
        found: Tensor = editor.model(**padded(editor, prompts, side)).logits
    return found


def last_logits(editor: Editor, prompts: Sequence[str], side: str = "right") -> Tensor:
    """``[rows, vocabulary]`` after each prompt (an encoder-decoder's first ones)."""
    logits = logits_of(editor, prompts, side)
    if editor.adapter.is_encoder_decoder or side == "left":
        return logits[:, -1]
    ends = padded(editor, prompts, side)["attention_mask"].sum(1) - 1
    return logits[torch.arange(len(prompts)), ends]
