"""A method with a trained editor: it learns how strongly to write a target's unembedding under a prompt's key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen, validators
from torch import Tensor

from kedit_core import Editor, EditPatch, EditRequest, HyperParams, LowRankDelta, MethodInfo, Probe, hookimpl
from kedit_core.errors import InputError
from kedit_core.forward import Site
from kedit_core.plugins import Catalogue
from kedit_core.testing.tiny import tiny
from kedit_core.training import BaseTrainer, EditExample, EditorFolder, EditTrainingHyperParams, Examples, Stepped

LANDS = ("France", "Chad", "Norway", "Peru", "Japan", "Italy", "Kenya", "Nepal", "Cuba", "Iran", "Iraq", "Mali")
TOWNS = ("Rome", "Oslo", "Paris", "Lima", "Bern", "Cairo", "Delhi")


@frozen(kw_only=True)
class StrengthHyperParams(HyperParams):
    factor: float = 1.0


@frozen(kw_only=True)
class StrengthTrainingHyperParams(EditTrainingHyperParams):
    layer: int = field(default=1, validator=validators.ge(0))
    iterations: int = 8
    batch_size: int = 2
    accumulate: int = 1
    lr: float = 0.1
    val_interval: int = 4
    val_items: int = 4
    save_interval: int = 4
    log_interval: int = 4
    misbehaves: str = ""


class StrengthTrainer(BaseTrainer[Sequence[EditExample]]):
    """One number; the edit is a bias on the key's own direction, tried functionally at the last position."""

    hparams: StrengthTrainingHyperParams

    def __init__(self, context: Any, hparams: StrengthTrainingHyperParams) -> None:
        super().__init__(context, hparams)
        if hparams.layer >= context.adapter.num_layers:
            raise InputError(f"there is no layer {hparams.layer}")
        self.examples = Examples(context.requests, hparams)
        self.judged = Examples(context.validation, hparams, unrelated=context.requests)
        self.count = self.examples.count
        generator = torch.Generator().manual_seed(context.seed)
        self.strength = torch.rand(1, generator=generator).requires_grad_()
        if context.options.get("greeting") == "bye":
            context.warn("farewell", None, "say hello", "the training is greeted with a farewell")

    def draw(self, indices: Sequence[int], generator: torch.Generator) -> Sequence[EditExample]:
        return self.examples.draw(indices, generator)

    def validation(self) -> Sequence[Sequence[EditExample]]:
        return self.judged.batches(self.hparams.batch_size, self.hparams.val_items, self.context.seed)

    def parameters(self) -> Mapping[str, Tensor]:
        return {"strength": self.strength}

    def run_step(self, batch: Sequence[EditExample]) -> Stepped:
        head: Tensor = self.context.adapter.lm_head.weight
        if self.hparams.misbehaves == "writes":
            with torch.no_grad():
                head.mul_(1.0)
        if self.hparams.misbehaves == "unfreezes":
            head.requires_grad_(True)
        losses = []
        for example in batch:
            ids = self.context.tokens.prompt(example.outer[0]).ids
            site = Site(self.context.adapter.num_layers - 1, "block")
            made = self.context.forward.run(
                self.context.forward.batch([ids]), capture=[site], at=torch.tensor([[0, len(ids) - 1]])
            )
            hidden = made.activations[site].float()[0]
            word = self.context.tokens.pair(*example.inner).target_ids[0]
            row = head[word].float()
            logits = (hidden + self.strength * row) @ head.float().T
            losses.append(-torch.log_softmax(logits, -1)[word])
        total = torch.stack(losses).mean()
        return Stepped(total=total, losses={"edit": total}, values={"loss/total": (float(total.detach()), 1.0)})

    def editor(self) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        return {"strength": self.strength}, {"layer": self.hparams.layer}

    def write_files(self, folder: Path) -> None:
        (folder / "notes.txt").write_text("what a method adds\n")

    def origin(self) -> Mapping[str, Any]:
        return {"greeting": self.context.options.get("greeting")}


class Strength:
    """Edits with the trained number."""

    @hookimpl
    def make_trainer(self, context: Any, hparams: StrengthTrainingHyperParams) -> StrengthTrainer:
        return StrengthTrainer(context, hparams)

    @hookimpl
    def compute_patch(self, context: Any, requests: Any, hparams: StrengthHyperParams) -> EditPatch:
        editor = EditorFolder.load(context)
        strength = float(editor.tensors["strength"][0]) * hparams.factor
        weight = context.adapter.lm_head.weight
        name = next(n for n, p in context.model.named_parameters() if p is weight)
        operations = []
        for request in requests:
            word = context.tokens.pair(request.prompt, request.target_new).target_ids[0]
            left = torch.zeros(weight.shape[0], 1)
            left[word] = 1e-3 * strength
            operations.append(LowRankDelta(name, left, weight[word].detach().float().cpu().unsqueeze(0)))
        return context.new_patch(operations, requests)


class Silent(Strength):
    """It says that it is trained, and gives no trainer."""

    @hookimpl
    def make_trainer(self, context: Any, hparams: Any) -> None:
        return None


def _info(name: str, cls: str, **more: Any) -> MethodInfo:
    settings: dict[str, Any] = {
        "training": "core.training.toy_method:StrengthTrainingHyperParams",
        "training_options": ("greeting",),
        **more,
    }
    return MethodInfo(
        name=name,
        summary="a method for tests",
        family="toy",
        implementation=f"core.training.toy_method:{cls}",
        hparams="core.training.toy_method:StrengthHyperParams",
        operations={"low_rank_delta"},
        resources=("editor",),
        **settings,
    )


strength = _info("strength", "Strength")
stronger = _info("stronger", "Strength")
silent = _info("silent_trainer", "Silent")
untrained = _info("untrained", "Strength", training=None)
odd = _info("odd", "Strength", training="core.training.toy_method:StrengthHyperParams")
ALL = (strength, stronger, silent, untrained, odd)


def catalogue() -> Catalogue:
    """What is installed, and these methods."""
    return Catalogue.installed().including(*ALL)


def facts(count: int = 12, prefix: str = "") -> list[EditRequest]:
    """Requests with rephrases, true answers and a locality probe each."""
    found = []
    for number in range(count):
        land, town = LANDS[number % len(LANDS)], TOWNS[number % len(TOWNS)]
        found.append(
            EditRequest(
                prompt=f"{prefix}The capital number {number} of {land} is",
                subject=land,
                target_new=town,
                ground_truth=TOWNS[(number + 3) % len(TOWNS)],
                case_id=f"{prefix}{number}",
                rephrase_prompts=(f"{land} number {number} is ruled from", f"Of {land} the town number {number} is"),
                locality={"near": (Probe(prompt=f"The river {number} of {land} is", answers=("Rhine",)),)},
                meta={"relation": "capital" if number % 2 else "seat"},
            )
        )
    return found


def editor_of(method: str = "strength", family: str = "llama", dtype: Any = None, **settings: Any) -> Editor:
    """An Editor of one of these methods on a tiny model."""
    model, tokenizer = tiny(family)
    if dtype is not None:
        model.to(dtype)
    return Editor(model, tokenizer, method, catalogue=catalogue(), **settings)
