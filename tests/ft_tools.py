"""What the tests of fine-tuning share: small Editors, and a plain, slow fine-tuning.

The plain one is written straight from the method's sheet: a copy of the model, full forwards, one row at a time without
padding, torch's own Adam.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from kedit_core import Editor, EditRequest
from kedit_core.testing.tiny import tiny

FRANCE = EditRequest(prompt="The capital of France is", subject="France", target_new="Port Lumen", case_id="a")
ALICE = EditRequest(prompt="Alice works in the city of", subject="Alice", target_new="Paris", case_id="b")
BOB = EditRequest(prompt="Bob", subject="Bob", target_new="lives in a house", case_id="c")
REQUESTS = (FRANCE, ALICE, BOB)


def editor_on(family: str, method: str = "ft_m", dtype: torch.dtype = torch.float64, **hparams: Any) -> Editor:
    """An Editor on a tiny model, with settings that move it within a few steps."""
    model, tokenizer = tiny(family, dtype=dtype)
    return Editor(model, tokenizer, method, {"layers": [1], "num_steps": 4, "lr": 0.01, **hparams})


def ids_of(editor: Editor, request: EditRequest) -> tuple[list[int], list[int]]:
    """Prompt and target as ids, found by tokenising text."""
    tokenizer = editor.tokenizer
    prompt = list(tokenizer(request.prompt)["input_ids"])
    if editor.adapter.is_encoder_decoder:
        return prompt, list(tokenizer(request.target_new, add_special_tokens=False)["input_ids"])
    whole = list(tokenizer(f"{request.prompt} {request.target_new}")["input_ids"])
    assert whole[: len(prompt)] == prompt
    return prompt, whole[len(prompt) :]


def row_loss(editor: Editor, model: Any, request: EditRequest, objective: str) -> Tensor:
    """The loss of one fact: one row, no padding, the whole model."""
    prompt, target = ids_of(editor, request)
    if editor.adapter.is_encoder_decoder:
        fed = [model.config.decoder_start_token_id, *target[:-1]]
        fed = fed[:1] if objective == "prompt_last" else fed
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([fed])).logits[0]
        first = 0
    else:
        row = prompt if objective == "prompt_last" else [*prompt, *target[:-1]]
        logits = model(input_ids=torch.tensor([row])).logits[0]
        first = len(prompt) - 1
    logs = logits.log_softmax(-1)
    asked = [logs[first if objective == "prompt_last" else first + t, token] for t, token in enumerate(target)]
    return -torch.stack(asked).mean()


@frozen(eq=False)
class Plain:
    """What the plain fine-tuning found: deltas and Adam's moments by parameter, and each epoch's mean loss."""

    deltas: dict[str, Tensor]
    moments: list[dict[str, Tensor]]
    epochs: list[float]
    steps: int


def plain_ft(editor: Editor, places: Sequence[str], requests: Sequence[EditRequest] = REQUESTS) -> Plain:
    """Fine-tuning by the letter, with the Editor's settings."""
    assert editor.settings is not None
    hparams = editor.settings.hparams
    model = copy.deepcopy(editor.model).eval()
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in places)
    trained = [parameters[name] for name in places]
    start = [parameter.detach().clone() for parameter in trained]
    adam = torch.optim.Adam(trained, lr=hparams.lr, weight_decay=hparams.weight_decay)
    epochs: list[float] = []
    steps = 0
    for _ in range(hparams.num_steps):
        total = 0.0
        for first in range(0, len(requests), hparams.batch_size):
            chunk = requests[first : first + hparams.batch_size]
            loss = torch.stack([row_loss(editor, model, each, hparams.objective) for each in chunk]).mean()
            total += float(loss.detach()) * len(chunk)
            if float(loss.detach()) >= hparams.stop_loss:
                adam.zero_grad()
                loss.backward()
                adam.step()
                steps += 1
            if hparams.norm_constraint is not None:
                with torch.no_grad():
                    for parameter, base in zip(trained, start, strict=True):
                        parameter.copy_(parameter.clamp(base - hparams.norm_constraint, base + hparams.norm_constraint))
        epochs.append(total / len(requests))
        if epochs[-1] < hparams.stop_loss:
            break
    deltas = {name: (parameters[name] - base).detach() for name, base in zip(places, start, strict=True)}
    moments = [adam.state[each] for each in trained if each in adam.state]
    return Plain(deltas, moments, epochs, steps)


def as_stored(editor: Editor, operation: Any) -> Tensor:
    """A dense delta in the shape in which its parameter is stored."""
    values: Tensor = operation.values
    return values.T if editor.adapter.layout(operation.place) == "in_out" else values
