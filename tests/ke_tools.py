"""What the tests of KE share: Editors that find it, small trained editors, and the update written out plainly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from meta_tools import catalogue as family_catalogue
from meta_tools import records
from torch import Tensor, nn

from kedit_core import Editor, EditRequest
from kedit_core.editing import EditContext
from kedit_core.forward import Pair
from kedit_core.plugins import METHODS, Catalogue
from kedit_core.testing.tiny import tiny
from kedit_core.training import EditorFolder, train
from kedit_core.training.run import training_context, training_settings
from kedit_core.training.writing import write_editor
from kedit_methods_meta.hparams.ke import KeEditorSettings
from kedit_methods_meta.ke import KeEditor, KeTrainer
from kedit_methods_meta.methods import ke

SIZES: dict[str, Any] = {"condition_size": 24, "lstm_size": 8, "head_size": 16}
FEW: dict[str, Any] = {
    **SIZES, "iterations": 2, "val_interval": 2, "val_items": 2, "unrelated": 2, "warmup": 0, "updates": 100,
}  # fmt: skip


def catalogue() -> Catalogue:
    """The family's methods, with KE by its own description where its distribution does not declare it yet."""
    known = family_catalogue()
    return known if any(found.name == "ke" for found in known.entries(METHODS)) else known.including(ke)


def editor_on(family: str, folder: Path | None = None, dtype: torch.dtype = torch.float32, **settings: Any) -> Editor:
    """An Editor with KE on a tiny model, with an editor folder."""
    model, tokenizer = tiny(family)
    resources = {} if folder is None else {"editor": folder}
    return Editor(model.to(dtype), tokenizer, "ke", **{"resources": resources, "catalogue": catalogue(), **settings})


def trained(folder: Path, family: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    """A folder with an editor that was trained for a few steps, made when it is not there."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        train(editor_on(family, dtype=dtype), records(8), folder, {**FEW, **settings}, validation=records(3, 20))
    return folder


def descending(folder: Path, source: Path, rate: float) -> Path:
    """The editor of ``source`` with numbers that make its update ``-rate`` times the gradient, whatever the text."""
    read = EditorFolder.read(source)
    tensors = dict(read.tensors)
    for number, place in enumerate(read.config["places"]):
        tensors[f"heads.{number}.second.g"] = torch.zeros_like(tensors[f"heads.{number}.second.g"])
        answer = torch.zeros_like(tensors[f"heads.{number}.second.bias"])
        # the rows' shares are 1 / out, and the gate is a half
        answer[: place["width"]] = -2 * rate * place["out"] / read.config["settings"]["max_scale"]
        tensors[f"heads.{number}.second.bias"] = answer
    write_editor(folder, tensors, read.state)
    return folder


def trainer_on(
    family: str,
    dtype: torch.dtype = torch.float64,
    train_on: Sequence[EditRequest] = (),
    validate_on: Sequence[EditRequest] = (),
    **settings: Any,
) -> KeTrainer:
    """A trainer as the loop gets it, on a frozen tiny model; its networks in the model's dtype."""
    editor = editor_on(family, dtype=dtype)
    resolved = training_settings(editor, {**FEW, **settings})
    context = training_context(
        editor, resolved.hparams, list(train_on or records(8)), list(validate_on or records(4, 20))
    )
    for parameter in editor.model.parameters():
        parameter.requires_grad_(False)
    made = editor.host.make_trainer(context, resolved.hparams)
    assert isinstance(made, KeTrainer)
    made.module.to(dtype)
    return made


def a_context(family: str, dtype: torch.dtype = torch.float64) -> EditContext:
    """The context of an Editor without a method on a tiny model."""
    model, tokenizer = tiny(family)
    return Editor(model.to(dtype), tokenizer, None).context()


def new_editor(context: EditContext, seed: int = 0, spread: float = 3.0, **settings: Any) -> KeEditor:
    """An untrained editor in the model's dtype, its heads' last layer ``spread`` times as wide as it starts.

    (So that masks, shifts and gates differ from one another and from edit to edit.)
    """
    chosen = KeEditorSettings(**{**SIZES, **settings})
    made = KeEditor.new(context.forward, chosen, torch.Generator().manual_seed(seed))
    made = made.to(next(context.model.parameters()).dtype)
    with torch.no_grad():
        for head in made.heads:
            head.second.g.mul_(spread)
    return made


def gradients(context: EditContext, pair: Pair, names: Sequence[str]) -> dict[str, Tensor]:
    """``[out, in]`` gradients of the mean negative log-likelihood of a pair's answer, by torch's own backward pass."""
    model: Any = context.model
    parameters = dict(model.named_parameters())
    for name in names:
        parameters[name].requires_grad_(True)
    loss = answer_loss(context, pair)
    found = torch.autograd.grad(loss, [parameters[name] for name in names], allow_unused=True)
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    zeros = [torch.zeros_like(parameters[name]) if g is None else g for name, g in zip(names, found, strict=True)]
    return {
        name: each.T if context.adapter.layout(name) == "in_out" else each
        for name, each in zip(names, zeros, strict=True)
    }


def answer_logits(context: EditContext, pair: Pair) -> Tensor:
    """``[T, vocabulary]`` logits that ask for the answer's tokens, of one plain call of the model."""
    model: Any = context.model
    model.eval()
    prompt, target = list(pair.prompt_ids), list(pair.target_ids)
    if context.adapter.is_encoder_decoder:
        fed = [model.config.decoder_start_token_id, *target[:-1]]
        logits: Tensor = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([fed])).logits
        return logits[0]
    logits = model(input_ids=torch.tensor([prompt + target])).logits
    return logits[0, len(prompt) - 1 : -1]


def answer_loss(context: EditContext, pair: Pair) -> Tensor:
    """Mean negative log-likelihood of a pair's answer, of one plain call of the model."""
    return nn.functional.cross_entropy(answer_logits(context, pair), torch.tensor(pair.target_ids))


def plain_update(editor: KeEditor, condition: Sequence[int], gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The update as the paper writes it: ``s (A * G + B)`` for each weight, all formed whole."""
    encoder, settings, found = editor.encoder, editor.settings, {}
    embedded = encoder.embedding(torch.tensor(list(condition)))
    _, (hidden, _) = encoder.lstm(embedded)  # one sequence, unpacked
    read = torch.tanh(encoder.linear(torch.cat([hidden[0], hidden[1]])))
    for place, head in zip(editor.places, editor.heads, strict=True):
        n, m = place.out, place.width
        answer = read
        for i, layer in enumerate((head.first, head.second)):
            weight = layer.g * layer.v / layer.v.pow(2).sum(1, keepdim=True).sqrt()
            answer = weight @ (torch.tanh(answer) if i else answer) + layer.bias
        col_a, row_a, col_b, row_b, g = (
            answer[:m], answer[m : m + n], answer[m + n : 2 * m + n], answer[2 * m + n : 2 * (m + n)], answer[-1]
        )  # fmt: skip
        mask = torch.outer(row_a.exp() / row_a.exp().sum(), col_a)
        shift = torch.outer(row_b.exp() / row_b.exp().sum(), col_b)
        found[place.name] = settings.max_scale / (1 + torch.exp(-g)) * (mask * gradient[place.name] + shift)
    return found
