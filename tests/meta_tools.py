"""What the tests of the meta-learning family share: records, Editors that find its methods, trained editors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kedit_core import Editor, EditRequest
from kedit_core.editing import EditContext
from kedit_core.forward import Pair
from kedit_core.plugins import GROUPS, METHODS, Catalogue, Found
from kedit_core.requests import Probe
from kedit_core.testing.tiny import tiny
from kedit_core.training import TrainingContext, train
from kedit_core.training.run import training_context, training_settings

PEOPLE = ("Alice", "Bob", "Carol", "Dan", "Erin", "Frank", "Grace", "Heidi", "Ivan", "Judy", "Mallory", "Niaj")
CITIES = ("Rome", "Oslo", "Paris", "Lima", "Bern", "Cairo", "Delhi", "Tokyo")
METHODS_HERE = ("mend", "malmen")


def catalogue() -> Catalogue:
    """What is installed, and this family's methods by the entry points that its distribution declares."""
    installed = Catalogue.installed()
    entries = [found for group in GROUPS for found in installed.entries(group)]
    known = {found.name for found in entries if found.group == METHODS}
    for name in METHODS_HERE:
        if name not in known:
            value = f"kedit_methods_meta.methods:{name}"
            entries.append(
                Found(group=METHODS, name=name, value=value, distribution="kedit-methods-meta", version="0.1.0")
            )
    return Catalogue(entries)


def records(count: int, first: int = 0) -> list[EditRequest]:
    """Facts about people, each with a rephrase, a true answer and an unrelated probe."""
    found = []
    for number in range(first, first + count):
        name, city, true = PEOPLE[number % len(PEOPLE)], CITIES[number % 7], CITIES[(number + 3) % 8]
        found.append(
            EditRequest(
                prompt=f"{name} number {number} lives in",
                subject=name,
                target_new=city,
                ground_truth=true,
                case_id=f"case-{number}",
                rephrase_prompts=(f"The home of {name} number {number} is",),
                locality={"near": (Probe(prompt=f"{name} number {number} speaks", answers=("Latin",)),)},
                meta={"relation": "home", "task": "question answering"},
            )
        )
    return found


def a_context(family: str, dtype: torch.dtype = torch.float64, **settings: Any) -> EditContext:
    """The context of an Editor without a method on a tiny model."""
    model, tokenizer = tiny(family)
    return Editor(model.to(dtype), tokenizer, None, **settings).context()


def pairs(context: EditContext, *texts: tuple[str, str]) -> list[Pair]:
    """Prompts and answers as ids."""
    return [context.tokens.pair(prompt, answer) for prompt, answer in texts]


def editor_on(
    family: str, method: str, folder: Path | None = None, dtype: torch.dtype = torch.float32, **settings: Any
) -> Editor:
    """An Editor of one of this family's methods on a tiny model, with an editor folder."""
    model, tokenizer = tiny(family)
    resources = {} if folder is None else {"editor": folder}
    return Editor(model.to(dtype), tokenizer, method, **{"resources": resources, "catalogue": catalogue(), **settings})


def trainer_on(
    family: str,
    method: str,
    settings: Mapping[str, Any],
    dtype: torch.dtype = torch.float64,
    train_on: Sequence[EditRequest] = (),
    validate_on: Sequence[EditRequest] = (),
    **more: Any,
) -> Any:
    """A trainer as the loop gets it, on a frozen tiny model."""
    editor = editor_on(family, method, dtype=dtype, **more)
    resolved = training_settings(editor, dict(settings), (), None)
    context: TrainingContext = training_context(
        editor, resolved.hparams, list(train_on or records(8)), list(validate_on or records(4, 20))
    )
    for parameter in editor.model.parameters():
        parameter.requires_grad_(False)
    return editor.host.make_trainer(context, resolved.hparams)


def trained(folder: Path, family: str, method: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    """A folder with an editor that was trained for a few steps, made when it is not there."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        few = {"iterations": 2, "accumulate": 1, "val_interval": 2, "val_items": 2, "layers": [-2, -1], "lr": 1e-3}
        train(
            editor_on(family, method, dtype=dtype),
            records(8),
            folder,
            {**few, **settings},
            validation=records(3, 20),
        )
    return folder


def stacked(operations: Sequence[Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """What operations add to each weight, ``[out, in]``, float64."""
    found = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    for operation in operations:
        found[operation.place] += operation.delta(shapes[operation.place], torch.float64)
    return found
