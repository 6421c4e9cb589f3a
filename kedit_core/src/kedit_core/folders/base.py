"""The parameters of a model folder, read one at a time: held against what a patch is for, or described for one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.errors import BaseMismatchError, InputError
from kedit_core.folders._checkpoint import Checkpoint
from kedit_core.folders._names import Names
from kedit_core.folders._record import History, originals
from kedit_core.folders._shards import FLOAT_DTYPES, Shard
from kedit_core.patches.digests import digests_in, digests_of, dtype_name, tensor_digest
from kedit_core.patches.format import Base, BaseTensor, EditPatch
from kedit_core.patches.operations import Operation
from kedit_core.patches.places import dotted

__all__ = ["FolderBase", "TensorCheck"]


@frozen(kw_only=True)
class TensorCheck:
    """One parameter of a folder held against what a patch was made for; ``problem`` is None when they agree."""

    place: str
    dtype: str | None
    problem: str | None


@frozen
class FolderBase:
    """The untouched parameters of a model folder, read one at a time; of an edited folder, those before the edits
    (unless it was opened with ``present``)."""

    checkpoint: Checkpoint
    history: History | None
    names: Names

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], architecture: str | None = None, *, present: bool = False
    ) -> FolderBase:
        """Read config, headers and (of an edited folder) the record.

        Args:
            architecture: class name of the model whose parameters are asked for, as in a patch's ``base``; by default
                the one that kedit loads the folder with.
            present: read the weights as they are now, whatever kedit did to the folder; the record is not looked at.

        Raises:
            InputError: no model folder, or one that cannot be edited on disk.
            BaseMismatchError: the folder holds another architecture.
            StackDisturbedError: an edited folder that is not as kedit left it.
        """
        checkpoint = Checkpoint.open(Path(folder))
        history = None if present else History.of(checkpoint)
        return cls(checkpoint, history, Names.of(checkpoint, architecture))

    @property
    def patches(self) -> tuple[EditPatch, ...]:
        """The patches on the folder, in stack order."""
        return () if self.history is None else self.history.patches

    def stored(self, place: str) -> tuple[str, ...]:
        """Names under which the files store a parameter, more than one when it is tied and stored twice.

        Raises:
            BaseMismatchError: the folder does not hold it.
            InputError: it holds it in a form that cannot be edited on disk.
        """
        keys = self.names.stored(place, self.checkpoint)
        if (dtype := self.checkpoint.entry(keys[0]).dtype) not in FLOAT_DTYPES:
            raise InputError(
                f"{self.checkpoint.folder} stores {place} as {dtype}; only {', '.join(FLOAT_DTYPES)} can be edited"
            )
        return keys

    def tensor(self, place: str) -> Tensor:
        """A parameter before any edit, in the shape, layout and dtype it is stored in; errors as :meth:`stored`."""
        return self.shard(key := self.stored(place)[0]).tensor(key)

    def shard(self, key: str) -> Shard:
        """The file that holds a stored tensor, before any edit."""
        return originals(self.checkpoint, self.history, key)

    def digest(self, place: str) -> str:
        """SHA-256 of a parameter before any edit, in the dtype it is stored in; errors as :meth:`stored`."""
        return tensor_digest(self.tensor(place))

    def base_of(self, places: Sequence[Operation | str], name: str | None = None, revision: str | None = None) -> Base:
        """A manifest's description of the folder, for a patch with these operations or at these places.

        What :meth:`PatchStack.base_of` says of the loaded model, in the dtype that the files store. Memory: one
        parameter.

        Args:
            places: parameters and modules; of a module, all parameters are described.
            name: a Hub id or a registered name.
            revision: of a Hub model.

        Raises:
            InputError: a place that the model does not have, or a parameter that cannot be edited on disk.
            BaseMismatchError: a parameter that the folder does not hold.
        """
        named = self.names.named(dotted(places), self.checkpoint)
        return Base(
            name=name,
            revision=revision,
            architecture=self.names.architecture,
            config_sha256=self.names.config_sha256,
            tensors={place: self.describe(place) for place in named},
        )

    def describe(self, place: str) -> BaseTensor:
        """A manifest's description of one parameter; errors as :meth:`stored`."""
        _, *aliases = self.names.in_order(self.names.tied(place, self.checkpoint))
        return BaseTensor(
            shape=self.names.shapes[place],
            layout=self.names.layouts[place],
            aliases=aliases,
            sha256=digests_of(self.tensor(place)),
        )

    def misfit(self, place: str, expected: BaseTensor) -> str | None:
        """Why operations for ``expected`` cannot be put on a parameter at all, or None."""
        if (shape := self.names.shapes[place]) != expected.shape:
            return f"shape {list(shape)}, not {list(expected.shape)}"
        if ((layout := self.names.layouts[place]) == "in_out") != (expected.layout == "in_out"):
            return f"layout {layout}, not {expected.layout}"
        return None

    def _other_ties(self, place: str, expected: BaseTensor) -> str | None:
        aliases = set(self.names.tied(place, self.checkpoint)) - {place}
        if aliases == set(expected.aliases):
            return None
        return f"tied to {sorted(aliases) or 'nothing'}, not {sorted(expected.aliases) or 'to nothing'}"

    def compare(self, base: Base) -> Iterator[TensorCheck]:
        """Hold every parameter that a patch was made for against this folder, one at a time."""
        for place, expected in base.tensors.items():
            try:
                tensor = self.tensor(place)
            except (BaseMismatchError, InputError) as error:
                yield TensorCheck(place=place, dtype=None, problem=str(error))
                continue
            name = dtype_name(tensor.dtype)
            problem = (
                self.misfit(place, expected)
                or self._other_ties(place, expected)
                or _digest_problem(tensor, expected.sha256)
            )
            yield TensorCheck(place=place, dtype=name, problem=problem)


def _digest_problem(tensor: Tensor, recorded: Mapping[str, str]) -> str | None:
    dtype = tensor.dtype
    if dtype == torch.float64 and "float64" not in recorded:
        dtype = torch.float32
    if (expected := recorded.get(dtype_name(dtype))) is None:
        return f"the patch records no digest in {dtype_name(dtype)}"
    found = digests_in(tensor, (dtype,))[dtype_name(dtype)]
    return None if found == expected else f"digest {found[:12]}, not {expected[:12]}"
