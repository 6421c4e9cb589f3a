"""The trained editor: a folder with a scope classifier, a counterfactual model and what they were trained for.

An editor's folder as every method's (``state.json``, ``README.md``; see kedit_core.training), with the folders
``classifier`` and (unless the base itself answers) ``counterfactual``: ordinary Hugging Face folders of safetensors,
which is why there is no ``editor.safetensors``. Nothing in it is unpickled or run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, evolve, field, frozen, validators

from kedit_core.editing.sources import ModelFolder, load_model
from kedit_core.errors import InputError
from kedit_core.patches import RoutedModel, path_digest
from kedit_core.training import folder as editor_folder
from kedit_core.training.writing import write_editor
from kedit_methods_memory.serac.classifier import Classifier
from kedit_methods_memory.serac.loading import check_folder, quietly, save_tokenizer
from kedit_methods_memory.serac.similarity import Metric

METHOD = "serac"
_CLASSIFIER, _COUNTERFACTUAL = "classifier", "counterfactual"
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
        digest: of its folder; None for one that was not loaded. parts: of its two models' folders.
    """

    scope: Scope
    classifier: Classifier
    counterfactual: RoutedModel | None
    digest: str | None = None
    parts: Mapping[str, str] = field(factory=dict)

    @classmethod
    def load(cls, folder: Path, digest: str | None = None, device: torch.device | str = "cpu") -> SeracEditor:
        """Read a checkpoint. Memory: both models.

        Raises InputError when the folder is no whole SERAC checkpoint.
        """
        state = read_state(folder)
        scope = Scope.read(state["config"]["scope"], str(folder / editor_folder.STATE))
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
            digest=digest or path_digest(folder),
            parts=parts,
        )

    @property
    def config(self) -> dict[str, Any]:
        """The method's own part of ``state.json``."""
        return {"scope": self.scope.to_json()}

    def write_models(self, folder: Path) -> None:
        """Write the models' folders into ``folder``."""
        with quietly():
            self.classifier.save(folder / _CLASSIFIER)
            if self.counterfactual is not None:
                model: Any = self.counterfactual.model
                model.save_pretrained(folder / _COUNTERFACTUAL)
                save_tokenizer(self.counterfactual.tokenizer, folder / _COUNTERFACTUAL)

    def save(self, folder: Path) -> None:
        """Write an editor whose models were trained elsewhere; ``kedit train`` writes those it trains itself.

        Raises InputError when something else is there.
        """
        method = {"name": METHOD, "distribution": None, "version": None}
        state = {"method": method, "hparams": {}, "config": self.config, "base": {}, "trained": {}}
        write_editor(folder, {}, state, self.write_models)

    def to(self, device: torch.device) -> None:
        """Both models on a device, where they are not there."""
        self.classifier.to(device)
        if self.counterfactual is not None and next(self.counterfactual.model.parameters()).device != device:
            self.counterfactual.model.to(device)

    def of_scope(self, **changes: Any) -> SeracEditor:
        """The same models, read in another way."""
        return evolve(self, scope=evolve(self.scope, **changes))


def read_state(folder: Path) -> dict[str, Any]:
    """``state.json`` of an editor, without loading its models.

    Raises InputError when it is not there, or is of another method or format.
    """
    state = editor_folder.read_state(folder)
    if state["method"]["name"] != METHOD:
        raise InputError(
            f"the editor in {folder} was trained for the method {state['method']['name']!r}; make one with kedit train "
            "--method serac"
        )
    if not isinstance(state["config"].get("scope"), dict):
        raise InputError(f"{folder / editor_folder.STATE} lacks the scope of a SERAC editor; train it anew")
    return state


def load_counterfactual(folder: Path, device: torch.device | str | None = None) -> RoutedModel:
    """A causal or encoder-decoder language model of a folder, in the dtype it is stored in."""
    check_folder(folder, _COUNTERFACTUAL)
    with torch.random.fork_rng(devices=[]):
        model, tokenizer = load_model(ModelFolder(folder=folder), device=device)
    return RoutedModel(model=model, tokenizer=tokenizer)
