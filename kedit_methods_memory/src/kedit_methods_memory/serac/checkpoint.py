"""The editor checkpoint: a folder with a scope classifier, a counterfactual model and what they were trained for.

``state.json`` beside the folders ``classifier`` and (unless the base itself answers) ``counterfactual``, both ordinary
Hugging Face folders of safetensors. Nothing in it is unpickled or run.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, evolve, field, frozen, validators

from kedit_core.editing.sources import ModelFolder, load_model
from kedit_core.errors import InputError
from kedit_core.patches import RoutedModel, path_digest
from kedit_methods_memory.serac.classifier import Classifier
from kedit_methods_memory.serac.loading import check_folder, quietly, save_tokenizer
from kedit_methods_memory.serac.similarity import Metric

FORMAT = 1
_STATE, _CLASSIFIER, _COUNTERFACTUAL = "state.json", "classifier", "counterfactual"
_SLOT = re.compile(r"\{(prompt|target)\}")


def filled(template: str, prompt: str, target: str) -> str:
    """A template with the edit's texts in its places; braces in these are plain characters."""
    texts = {"prompt": prompt, "target": target}
    return _SLOT.sub(lambda found: texts[found[1]], template)


@frozen(kw_only=True)
class Scope:
    """How an editor reads texts; part of its ``state.json`` and of every patch.

    Attributes:
        cross_attend: the form of the classifier.
        labelled: whether an edit's key holds the target beside the prompt.
        separator: behind each part of a key.
        pooling, heads, measure, square, bounded, scale: of the embedding form.
        context: what stands before a prompt for the counterfactual model.
        freeze_cntr: the base itself is that model.
    """

    cross_attend: bool = field(default=False, validator=validators.instance_of(bool))
    labelled: bool = field(default=True, validator=validators.instance_of(bool))
    separator: str = field(validator=validators.instance_of(str))
    pooling: str = field(default="first", validator=validators.in_(("first", "mean", "last")))
    heads: int = field(default=1, validator=[validators.instance_of(int), validators.ge(1)])
    measure: str = field(default="l2", validator=validators.in_(("l2", "cos")))
    square: bool = field(default=True, validator=validators.instance_of(bool))
    bounded: bool = field(default=False, validator=validators.instance_of(bool))
    scale: float = field(default=1.0, converter=float, validator=validators.gt(0))
    context: str = field(validator=validators.instance_of(str))
    freeze_cntr: bool = field(default=False, validator=validators.instance_of(bool))

    @classmethod
    def read(cls, values: Any, source: str) -> Scope:
        """From JSON. Raises InputError for anything but a whole, valid description."""
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{source} does not describe a SERAC editor: {error.args[0] if error.args else error}"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """As :meth:`read` takes it."""
        return asdict(self)

    @property
    def metric(self) -> Metric:
        """Of the embedding form."""
        return Metric(
            heads=self.heads, measure=self.measure, square=self.square, bounded=self.bounded, scale=self.scale
        )

    def key(self, prompt: str, target: str) -> str:
        """What the classifier reads of an edit: ``prompt [SEP] target [SEP]``, or the prompt alone."""
        return f"{prompt} {self.separator} {target} {self.separator}" if self.labelled else prompt

    def before(self, prompt: str, target: str) -> str:
        """What the counterfactual model reads of an edit, before the prompt it answers."""
        return filled(self.context, prompt, target)


@frozen(eq=False, kw_only=True)
class SeracEditor:
    """A loaded editor checkpoint.

    Attributes:
        scope: how texts are read.
        classifier: says which edit a prompt concerns.
        counterfactual: answers in scope; None when the base itself does.
        origin: what it was made from: base, settings, training; JSON.
        digest: of its folder; None for one that was not loaded. parts: of its two models' folders.
    """

    scope: Scope
    classifier: Classifier
    counterfactual: RoutedModel | None
    origin: Mapping[str, Any] = field(factory=dict)
    digest: str | None = None
    parts: Mapping[str, str] = field(factory=dict)

    @classmethod
    def load(cls, folder: Path, digest: str | None = None, device: torch.device | str = "cpu") -> SeracEditor:
        """Read a checkpoint. Memory: both models.

        Raises InputError when the folder is no whole SERAC checkpoint.
        """
        state = read_state(folder)
        scope = Scope.read(state["scope"], str(folder / _STATE))
        classifier = Classifier.load(
            folder / _CLASSIFIER, scope.metric, cross=scope.cross_attend, pooling=scope.pooling
        )
        classifier.to(torch.device(device))
        parts = {_CLASSIFIER: path_digest(folder / _CLASSIFIER)}
        counterfactual = None
        if not scope.freeze_cntr:
            counterfactual = load_counterfactual(folder / _COUNTERFACTUAL, device)
            parts[_COUNTERFACTUAL] = path_digest(folder / _COUNTERFACTUAL)
        return cls(
            scope=scope,
            classifier=classifier,
            counterfactual=counterfactual,
            origin=state["origin"],
            digest=digest or path_digest(folder),
            parts=parts,
        )

    def save(self, folder: Path) -> None:
        """Write the checkpoint beside ``folder``, then put it there.

        Raises InputError when something else is there.
        """
        check_place(folder)
        beside = folder.parent / f".{folder.name}-{secrets.token_hex(4)}"
        try:
            beside.mkdir(parents=True)
            with quietly():
                self.classifier.save(beside / _CLASSIFIER)
                if self.counterfactual is not None:
                    model: Any = self.counterfactual.model
                    model.save_pretrained(beside / _COUNTERFACTUAL)
                    save_tokenizer(self.counterfactual.tokenizer, beside / _COUNTERFACTUAL)
            state = {"format": FORMAT, "method": "serac", "scope": self.scope.to_json(), "origin": dict(self.origin)}
            text = json.dumps(state, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
            (beside / _STATE).write_text(text + "\n", encoding="utf-8")
            if folder.exists():
                shutil.rmtree(folder)
            beside.rename(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def to(self, device: torch.device) -> None:
        """Both models on a device, where they are not there."""
        self.classifier.to(device)
        if self.counterfactual is not None and next(self.counterfactual.model.parameters()).device != device:
            self.counterfactual.model.to(device)

    def of_scope(self, **changes: Any) -> SeracEditor:
        """The same models, read in another way."""
        return evolve(self, scope=evolve(self.scope, **changes))


def read_state(folder: Path) -> dict[str, Any]:
    """``state.json`` of a checkpoint, without loading its models.

    Raises InputError when it is not there, or is of another method or format.
    """
    path = folder / _STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{folder} is no SERAC editor: its {_STATE} cannot be read ({error}); make one with kedit train-serac"
        ) from error
    if not isinstance(state, dict) or state.get("method") != "serac" or state.get("format") != FORMAT:
        raise InputError(f"{folder} is no SERAC editor of format {FORMAT}; make one with kedit train-serac")
    if not isinstance(state.get("scope"), dict) or not isinstance(state.get("origin"), dict):
        raise InputError(f"{path} lacks the scope or the origin of a SERAC editor; make one with kedit train-serac")
    return state


def load_counterfactual(folder: Path, device: torch.device | str | None = None) -> RoutedModel:
    """A causal or encoder-decoder language model of a folder, in the dtype it is stored in."""
    check_folder(folder, _COUNTERFACTUAL)
    with torch.random.fork_rng(devices=[]):
        model, tokenizer = load_model(ModelFolder(folder=folder), device=device)
    return RoutedModel(model=model, tokenizer=tokenizer)


def check_place(folder: Path) -> None:
    """InputError unless an editor may be written at ``folder``: nothing is there, or an empty folder, or an editor."""
    if folder.is_dir() and (not any(folder.iterdir()) or (folder / _STATE).is_file()):
        return
    if folder.exists():
        raise InputError(f"{folder} is there already and is no SERAC editor, so it is not replaced; give another name")
