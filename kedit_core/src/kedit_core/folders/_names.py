"""Which stored tensor of a model folder is which parameter of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import define, field
from torch import nn

from kedit_core.errors import BaseMismatchError, InputError, UnsupportedModelError
from kedit_core.folders._checkpoint import Checkpoint
from kedit_core.models.adapter import Layout
from kedit_core.models.parameters import layout_of
from kedit_core.patches.digests import config_digest


@define
class Names:
    """Which stored tensors make up which parameter, by transformers' own rules.

    The architecture is built on the meta device (no memory), and its checkpoint conversion is asked for the name of
    every stored tensor: prefixes that a headless checkpoint lacks, old spellings, tied weights stored once, twice or
    under the other's name.

    Attributes:
        architecture: class name of the model.
        config: its configuration, defaults included.
        config_sha256: digest of its configuration, as a patch records it.
        shapes: of every parameter, by each of its names, in the order of ``named_parameters``.
        layouts: likewise.
        modules: dotted names of all modules.
        float32: parts of names that transformers loads in float32, from float16 alone or from bfloat16 as well.
        buffers: names of what is stored and is no parameter.
        unknown: stored tensors that the model does not read.
    """

    architecture: str
    config: Mapping[str, Any]
    config_sha256: str
    shapes: Mapping[str, tuple[int, ...]]
    layouts: Mapping[str, Layout]
    modules: frozenset[str]
    float32: Mapping[str, frozenset[torch.dtype]]
    buffers: frozenset[str]
    unknown: frozenset[str]
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
        config, told = _config(checkpoint.folder)
        model = _skeleton(checkpoint.folder, config, architecture)
        shapes = {name: tuple(value.shape) for name, value in model.named_parameters(remove_duplicate=False)}
        stored: dict[str, list[str]] = {}
        converted = set()
        loaded = _loaded_names(model, checkpoint.file_of)
        for key, (name, joined) in loaded.items():
            stored.setdefault(name, []).append(key)
            if joined:
                converted.add(name)
        return cls(
            architecture=type(model).__name__,
            config=told,
            config_sha256=config_digest(model.config),
            shapes=shapes,
            layouts={name: layout_of(model, name) for name in shapes},
            modules=frozenset(name for name, _ in model.named_modules()),
            float32=_kept_in_float32(model),
            buffers=frozenset(stored.keys() - shapes.keys()),
            unknown=frozenset(checkpoint.file_of.keys() - loaded.keys()),
            stored=stored,
            tied=_tied_groups(model),
            converted=frozenset(converted),
        )

    def named(self, names: Iterable[str], checkpoint: Checkpoint) -> tuple[str, ...]:
        """First names of parameters, each once: of those named, and of all within a module that is named.

        Raises:
            InputError: the model has neither a parameter nor a module of a name, or it is not a parameter's first.
        """
        found: dict[str, None] = {}
        for name in names:
            inside = [one for one in self.shapes if not name or one.startswith(f"{name}.")]
            if name not in self.modules and name not in self.shapes:
                raise InputError(
                    f"{self.architecture} in {checkpoint.folder} has no parameter {name!r}; names are those of "
                    "named_parameters()"
                )
            if name in self.shapes and (first := self.first(name, checkpoint)) != name:
                raise InputError(f"{name!r} is tied to {first!r}; name it by its first name, {first!r}")
            found |= dict.fromkeys(self.first(one, checkpoint) for one in (inside or [name]) if one in self.shapes)
        return tuple(found)

    def first(self, place: str, checkpoint: Checkpoint) -> str:
        """The first name, in the order of ``named_parameters``, of the parameter ``place``."""
        return place if place not in self._tied else self.in_order(self.tied(place, checkpoint))[0]

    def in_order(self, names: Iterable[str]) -> tuple[str, ...]:
        """Names of one parameter in the order of ``named_parameters``."""
        wanted = set(names)
        return tuple(name for name in self.shapes if name in wanted)

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

    def loaded_dtype(self, place: str, stored: torch.dtype) -> torch.dtype:
        """What transformers loads the parameter ``place`` in when it goes by config.json."""
        wanted = self.config.get("dtype")
        dtype = getattr(torch, wanted, stored) if isinstance(wanted, str) else stored
        parts = (part for part, dtypes in self.float32.items() if dtype in dtypes)
        return torch.float32 if any(f".{part}." in f".{place}." for part in parts) else dtype

    def keys(self, name: str) -> tuple[str, ...]:
        """Stored tensors that are read under this very name, whatever it is tied to; also of a buffer."""
        return tuple(self._stored.get(name, ()))

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


def _config(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The configuration, and its values before a model is made of it, which may change them."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return config, config.to_dict()
    except Exception as error:  # a stranger's values, which classes of all kinds check or fall over
        raise UnsupportedModelError(f"transformers cannot read the config of {folder}: {_one_line(error)}") from error


def _skeleton(folder: Path, config: Any, architecture: str | None) -> nn.Module:
    """The model without weights, on the meta device."""
    import transformers

    auto = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    named = getattr(transformers, architecture or "", None)
    fits = isinstance(named, type) and isinstance(config, getattr(named, "config_class", None) or ())
    try:
        with torch.device("meta"):
            model: nn.Module = (
                named(config) if named is not None and fits else auto.from_config(config, trust_remote_code=False)
            )
    except Exception as error:  # as above
        raise UnsupportedModelError(f"transformers cannot build the model of {folder}: {_one_line(error)}") from error
    if architecture is not None and type(model).__name__ != architecture:
        raise BaseMismatchError(f"the patch is for {architecture}, but {folder} holds a {type(model).__name__}")
    return model


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 300 else f'{text[:297]}...'}"


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


def _kept_in_float32(model: Any) -> dict[str, frozenset[torch.dtype]]:
    some = dict.fromkeys(getattr(model, "_keep_in_fp32_modules", None) or (), frozenset({torch.float16}))
    always = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    return some | dict.fromkeys(always, frozenset({torch.float16, torch.bfloat16}))
