"""A model folder that stays on disk: its weight files, and which stored tensor is which parameter of the model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import define, field, frozen
from torch import nn

from kedit_core.errors import BaseMismatchError, InputError, UnsupportedModelError
from kedit_core.models.adapter import Layout
from kedit_core.models.parameters import layout_of
from kedit_core.patches._shards import Entry, Shard

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_JSON_LIMIT = 64 << 20


@frozen
class Checkpoint:
    """The weight files of a local Hugging Face folder.

    Attributes:
        shards: by file name, in the order of the index.
        file_of: stored tensor -> file name.
    """

    folder: Path
    config: Mapping[str, Any]
    shards: Mapping[str, Shard]
    file_of: Mapping[str, str]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read config and headers; no weight is read.

        Raises:
            InputError: not a model folder, or weights that cannot be edited on disk (pickled, quantised, with an
                adapter beside); the message says what to do instead.
        """
        config = read_json(folder / "config.json", f"{folder} is not a Hugging Face model folder")
        _refuse_what_cannot_be_edited(folder, config)
        shards = {name: Shard.open(folder / name) for name in _weight_files(folder, config)}
        file_of: dict[str, str] = {}
        for name, shard in shards.items():
            for key in shard.entries:
                if key in file_of:
                    raise InputError(f"{folder} holds tensor {key} in both {file_of[key]} and {name}; remove one")
                file_of[key] = name
        return cls(folder, config, shards, file_of)

    def shard(self, key: str) -> Shard:
        """The file a stored tensor is in."""
        return self.shards[self.file_of[key]]

    def entry(self, key: str) -> Entry:
        """What the header says of a stored tensor."""
        return self.shard(key).entries[key]


@define
class Names:
    """Which stored tensors make up which parameter, by transformers' own rules.

    The architecture is built on the meta device (no memory), and its checkpoint conversion is asked for the name of
    every stored tensor: prefixes that a headless checkpoint lacks, old spellings, tied weights stored once, twice or
    under the other's name.
    """

    architecture: str
    shapes: Mapping[str, tuple[int, ...]]
    layouts: Mapping[str, Layout]
    _stored: Mapping[str, Sequence[str]]
    _tied: Mapping[str, Sequence[str]]
    _converted: frozenset[str]
    _settled: dict[str, tuple[str, ...]] = field(factory=dict)

    @classmethod
    def of(cls, checkpoint: Checkpoint, architecture: str | None = None) -> Names:
        """Names for ``architecture`` (a class name); by default the class that kedit would load the folder with.

        Raises:
            BaseMismatchError: the folder holds another kind of model.
            UnsupportedModelError: transformers does not know the architecture.
        """
        model = _skeleton(checkpoint.folder, architecture)
        shapes = {name: tuple(value.shape) for name, value in model.named_parameters(remove_duplicate=False)}
        layouts = {name: layout_of(model, name) for name in shapes}
        stored: dict[str, list[str]] = {}
        converted = set()
        for key, (name, joined) in _loaded_names(model, checkpoint.file_of).items():
            stored.setdefault(name, []).append(key)
            if joined:
                converted.add(name)
        return cls(type(model).__name__, shapes, layouts, stored, _tied_groups(model), frozenset(converted))

    def stored(self, place: str, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Stored tensors that hold the parameter ``place`` (more than one when a tied weight is stored twice).

        Raises:
            BaseMismatchError: the model has no such parameter, or the folder does not hold it.
            InputError: the folder holds it in parts that transformers joins when it loads.
        """
        if place not in self.shapes:
            raise BaseMismatchError(
                f"{self.architecture} in {checkpoint.folder} has no parameter {place}; the patch is for another model"
            )
        names = self.tied(place, checkpoint)
        if self._converted.intersection(names):
            raise InputError(
                f"{checkpoint.folder} stores {place} in another form than the model has it, so it cannot be edited on "
                "disk; apply the patch to the loaded model and save that"
            )
        keys = tuple(key for name in names for key in self._stored.get(name, ()))
        if not keys or len({checkpoint.entry(key).dtype for key in keys}) > 1:
            raise BaseMismatchError(
                f"{checkpoint.folder} does not hold {place} of {self.architecture}; get the folder again"
            )
        if (shape := checkpoint.entry(keys[0]).shape) != self.shapes[place]:
            raise BaseMismatchError(
                f"{place} has shape {list(shape)} in {checkpoint.folder}, but its config.json asks for "
                f"{list(self.shapes[place])}; get the folder again"
            )
        return keys

    def tied(self, place: str, checkpoint: Checkpoint) -> tuple[str, ...]:
        """All names of the parameter ``place``; a tied name stored with other values is a parameter of its own."""
        if place not in self._settled:
            group = self._tied.get(place, (place,))
            stored = {name: key for name in group for key in self._stored.get(name, ())}
            digests = (
                {name: checkpoint.shard(key).digest(key) for name, key in stored.items()} if len(stored) > 1 else {}
            )
            # a name that is not stored follows the source of the tie, which comes first
            source = next(iter(digests.values()), None)
            own = digests.get(place, source)
            self._settled[place] = tuple(name for name in group if digests.get(name, source) == own)
        return self._settled[place]


def read_json(path: Path, otherwise: str) -> dict[str, Any]:
    """A JSON object from a file of bounded size; InputError, beginning with ``otherwise``, when there is none."""
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise ValueError("far too large")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(f"{otherwise}: {path.name} cannot be read ({reason})") from error
    if not isinstance(value, dict):
        raise InputError(f"{otherwise}: {path.name} is not a JSON object")
    return value


def _refuse_what_cannot_be_edited(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("quantization_config") is not None:
        raise InputError(
            f"{folder} holds quantised weights, which cannot take an edit exactly; apply the patch to the model it was "
            "quantised from and quantise the result, or put it on the loaded model in the attached way"
        )
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder} has a PEFT adapter beside its weights; merge the adapter first")


def _weight_files(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Names of the files that transformers would read, in its order of preference."""
    chosen = config.get("transformers_weights")
    if chosen is None:
        chosen = next((name for name in (SINGLE, INDEX) if (folder / name).is_file()), None)
    if chosen is None:
        if any(folder.glob("*.bin")):
            raise InputError(
                f"{folder} holds pickled weights (.bin), which kedit never opens; convert it first by loading it with "
                "transformers and calling save_pretrained on a new folder"
            )
        raise InputError(f"{folder} holds no {SINGLE} and no {INDEX}, so there are no weights to edit")
    if not str(chosen).endswith(".json"):
        return [_inside(str(chosen), folder)]
    weight_map = read_json(folder / _inside(str(chosen), folder), f"{folder} has a broken index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{folder} has a broken index: {chosen} has no weight_map")
    return list(dict.fromkeys(_inside(str(name), folder) for name in weight_map.values()))


def _inside(name: str, folder: Path) -> str:
    """``name``, unless it leads out of the folder."""
    if Path(name).name != name:
        raise InputError(f"{folder} names a weight file {name!r} that is not directly in the folder")
    return name


def _skeleton(folder: Path, architecture: str | None) -> nn.Module:
    """The model without weights, on the meta device."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModelError(f"transformers cannot read the config of {folder}: {error}") from error
    auto = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    named = getattr(transformers, architecture or "", None)
    fits = isinstance(named, type) and isinstance(config, getattr(named, "config_class", None) or ())
    try:
        with torch.device("meta"):
            model: nn.Module = named(config) if named is not None and fits else auto.from_config(config)
    except (ValueError, ImportError) as error:
        raise UnsupportedModelError(f"transformers cannot build the model of {folder}: {error}") from error
    if architecture is not None and type(model).__name__ != architecture:
        raise BaseMismatchError(f"the patch is for {architecture}, but {folder} holds a {type(model).__name__}")
    return model


def _loaded_names(model: Any, keys: Iterable[str]) -> dict[str, tuple[str, bool]]:
    """Stored tensor -> (name in the loaded model, whether transformers converts it); unknown tensors are left out."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [rule for rule in mapping if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in mapping if isinstance(rule, WeightConverter)]
    known = model.state_dict()
    prefix = model.base_model_prefix
    names = {}
    for key in keys:
        name, pattern = rename_source_key(key, renamings, converters, prefix, known)
        if name not in known and key in known:
            name, pattern = rename_source_key(key, [], [], prefix, known)
        if name in known:
            names[key] = (name, pattern is not None)
    return names


def _tied_groups(model: Any) -> dict[str, tuple[str, ...]]:
    """Name -> all names of the same tensor, the one the others follow first, for parameters that have several."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    sources = set(getattr(model, "all_tied_weights_keys", {}).values())
    ordered = (sorted(group, key=lambda name: name not in sources) for group in groups.values() if len(group) > 1)
    return {name: tuple(group) for group in ordered for name in group}
