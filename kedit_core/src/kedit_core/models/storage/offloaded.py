"""Weights that accelerate keeps away from their modules: in memory on the CPU, in a folder, in the checkpoint's files.

The parameter in the module is empty (on the ``meta`` device); before a module runs, a hook fills it from a map of
weights, and empties it afterwards. So a value is put in by exchanging the map's entry, in memory, also where the entry
was a file: no file is ever written. The parameter *object* changes with every run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from safetensors import SafetensorError
from torch import Tensor, nn

from kedit_core.errors import InputError
from kedit_core.models.storage.base import Held, Storage
from kedit_core.models.storage.marks import Fingerprint


@frozen(eq=False)
class Entry:
    """One entry of a map of weights.

    Attributes:
        memory: what is in memory; looked at before the files.
        key: its name there.
        loader: reads it where it is in a file; None for a plain dictionary.
    """

    memory: MutableMapping[str, Tensor]
    key: str
    loader: Any = None

    def now(self) -> Tensor | None:
        """What is in memory; None when it is in its file only."""
        return self.memory.get(self.key)

    def put(self, tensor: Tensor | None) -> None:
        """A tensor into memory; None leaves the file alone to say."""
        if tensor is None:
            self.memory.pop(self.key, None)
        else:
            self.memory[self.key] = tensor

    def from_file(self) -> Tensor:
        """What the file says. Raises InputError when it cannot be read."""
        if self.loader is None:
            raise InputError(
                f"the offloaded weight {self.key!r} is not in its map of weights any more; load the model anew"
            )
        bare = copy.copy(self.loader)
        bare.state_dict = {}
        try:
            found: Tensor = bare[self.key]
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise InputError(f"the offloaded weight {self.key!r} cannot be read from its file ({error})") from error
        return found

    @property
    def file(self) -> tuple[str, str] | None:
        """The file and the name in it; None when there is none."""
        info = self.loader.index.get(self.key) if self.loader is not None else None
        if info is None:
            return None
        if (file := info.get("safetensors_file")) is not None:
            return str(file), str(info.get("weight_name", self.key))
        return str(Path(self.loader.save_folder) / f"{self.key}.dat"), self.key

    def file_state(self) -> tuple[Any, ...]:
        """What changes when somebody exchanges the file: its name, size and time."""
        if (file := self.file) is None:
            return ("missing",)
        try:
            state = Path(file[0]).stat()
        except OSError:
            return (*file, "missing")
        return (*file, state.st_size, state.st_mtime_ns)

    @property
    def same_as(self) -> tuple[Any, ...]:
        """Equal for entries that hold one and the same tensor."""
        tensor = self.now()
        if tensor is not None:
            return (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.stride()), tensor.shape)
        return self.file or (id(self.memory), self.key)


@frozen(eq=False)
class Offload:
    """Where the tensors of one module are: the hooks that fill it, last one last, each with the names' prefix."""

    hooks: tuple[tuple[Any, str], ...]

    def entries(self, leaf: str) -> list[Entry]:
        """The entries a parameter is filled from; the last one counts."""
        return [_entry(hook.weights_map, prefix + leaf) for hook, prefix in self.hooks]

    @property
    def device(self) -> torch.device:
        """Where the module runs."""
        device = self.hooks[-1][0].execution_device
        return torch.device("cpu" if device is None else device)


class Offloaded(Storage):
    """A parameter whose value is in accelerate's map of weights.

    Args:
        owner, leaf: the module and the name in there.
        offload: how the module is filled.
        twins: the entries of the parameters it is tied to, which are exchanged with it.
    """

    kind = "offloaded"

    def __init__(self, owner: nn.Module, leaf: str, offload: Offload, twins: tuple[Entry, ...] = ()) -> None:
        super().__init__(owner, leaf)
        self._offload = offload
        self._entries = (*twins, *offload.entries(leaf))

    @property
    def device(self) -> torch.device:
        """Where its module computes."""
        return self._offload.device

    @property
    def there(self) -> bool:
        """Whether the same hooks fill it still."""
        now = self.owner._parameters.get(self.leaf)
        hooks = [id(hook) for hook in _hooks(self.owner)]
        return (
            now is not None and now.is_meta and all(id(hook) in hooks or prefix for hook, prefix in self._offload.hooks)
        )

    def mark(self) -> Fingerprint:
        """That of the entry: its tensor's, or its file's size and time."""
        entry = self._entries[-1]
        tensor = entry.now()
        return Fingerprint.of_file(self.parameter, entry.file_state()) if tensor is None else Fingerprint.of(tensor)

    def hold(self) -> Held:
        """The entries, by reference."""
        return tuple(entry.now() for entry in self._entries)

    def outdated(self, held: Held, mark: Fingerprint) -> bool:
        """Whether the file that the base is read from, while another value is in memory, is in another state."""
        tensor = held[-1] if isinstance(held, tuple) else held
        return tensor is None and self._entries[-1].file_state() != mark.source

    def read(self, held: Held) -> Tensor:
        """The entry as the module gets it, on the CPU; read from its file where it is in no memory."""
        tensor = held[-1] if isinstance(held, tuple) else held
        found = self._entries[-1].from_file() if tensor is None else tensor
        return found.detach().to("cpu", self.dtype)

    def put(self, value: Tensor) -> None:
        """Exchange the entries, in memory."""
        for entry in self._entries:
            entry.put(value)

    def restore(self, held: Held) -> None:
        """The old tensors back into the map, or the files alone."""
        for entry, tensor in zip(self._entries, held, strict=True):
            entry.put(tensor)


def offload_of(model: nn.Module, owner_path: str) -> Offload | None:
    """How the module of that name is filled before it runs; None when its tensors are its own."""
    found: list[tuple[Any, str]] = []
    owner: nn.Module = model
    steps = owner_path.split(".") if owner_path else []
    path = [model]
    for step in steps:
        owner = owner.get_submodule(step)
        path.append(owner)
    for depth in range(len(path) - 1, -1, -1):
        inside = ".".join(steps[depth:])
        for hook in _hooks(path[depth]):
            if inside and not hook.place_submodules:
                continue
            found.append((hook, f"{inside}." if inside else ""))
        if found:
            return Offload(tuple(found))
    return None


def device_of(model: nn.Module, owner_path: str) -> torch.device | None:
    """Where an offloaded module runs; None when it is not offloaded."""
    offload = offload_of(model, owner_path)
    return None if offload is None else offload.device


def is_dispatched(model: nn.Module) -> bool:
    """Whether accelerate has spread the model over devices, memory and disk."""
    places = set(getattr(model, "hf_device_map", {}).values())
    return len(places) > 1 or any(hook for module in model.modules() for hook in _hooks(module))


def declared_ties(model: nn.Module) -> dict[str, str]:
    """Name of a tied parameter -> the name it is tied to, as transformers keeps it; empty for other models."""
    known = getattr(model, "all_tied_weights_keys", None)
    return dict(known) if isinstance(known, Mapping) else {}


def _hooks(module: nn.Module) -> Iterator[Any]:
    """accelerate's offloading hooks of a module, known by what they have (accelerate need not be imported)."""
    hook = module.__dict__.get("_hf_hook")
    if hook is None:
        return
    for each in getattr(hook, "hooks", (hook,)):
        if getattr(each, "offload", False) and getattr(each, "weights_map", None) is not None:
            yield each


def _entry(found: Any, key: str) -> Entry:
    """Follow prefixes to what can be written."""
    while not isinstance(found, MutableMapping) and hasattr(found, "prefix") and hasattr(found, "dataset"):
        found, key = found.dataset, f"{found.prefix}{key}"
    if isinstance(found, MutableMapping):
        return Entry(found, key)
    memory = getattr(found, "state_dict", None)
    if isinstance(memory, MutableMapping) and isinstance(getattr(found, "index", None), Mapping):
        return Entry(memory, key, found)
    raise InputError(
        f"{key!r} is offloaded in a {type(found).__name__}, which kedit cannot write; offload the model with accelerate"
    )
