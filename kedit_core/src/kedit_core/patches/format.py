"""The patch: one edit as data, and its file. docs/patch-format.md is the normative text.

Reading never runs anything and believes nothing unchecked: sizes first, then JSON, then the manifest, then tensors.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from attrs import field, frozen
from torch import Tensor

from kedit_core.errors import InputError, KeditError, PatchFormatError
from kedit_core.files import open_regular, replacing
from kedit_core.patches import canonical, container
from kedit_core.patches.digests import dtype_name
from kedit_core.patches.manifest import (
    FORMAT,
    Base,
    BaseTensor,
    MethodRef,
    PrivateRequests,
    Requests,
    Requirement,
    State,
    check_requests,
    check_sha256,
    plain_object,
)
from kedit_core.patches.operations import (
    WEIGHT_OPERATIONS,
    ModuleOperation,
    Operation,
    Owned,
    as_tuple,
    check_shape,
    own,
)
from kedit_core.patches.reading import check_version, read_manifest, write_manifest
from kedit_core.patches.trust import Trust, check_unchanged, read_signature, vouched

__all__ = [
    "FORMAT",
    "Base",
    "BaseTensor",
    "EditPatch",
    "Inspection",
    "MethodRef",
    "PrivateRequests",
    "Requests",
    "Requirement",
    "State",
    "inspect",
]


@frozen(eq=False, kw_only=True, repr=False)
class EditPatch:
    """An edit: operations on named places, their tensors, and the manifest that says where they come from.

    Built by ``context.new_patch`` or read with :meth:`load`. Everything in it is checked and copied when it is built
    (PatchFormatError): tensors are finite, on the CPU and shared with nothing; settings are plain JSON.

    Attributes:
        method: who computed it.
        hparams: the settings as used.
        seed: of the run, or None.
        parents: ids of the patches that were on the model when it was computed, in order.
        requires: what it needs beside itself.
        base: the model it is for.
        operations: in the order in which they are put on.
        state: the method's own.
        requests: the facts, or a hash of them.
    """

    method: MethodRef
    hparams: Mapping[str, Any] = field(factory=dict, converter=plain_object)
    seed: int | None = None
    parents: tuple[str, ...] = field(default=(), converter=as_tuple)
    requires: tuple[Requirement, ...] = field(default=(), converter=as_tuple)
    base: Base
    operations: tuple[Operation, ...] = field(converter=as_tuple)
    state: State = field(factory=State)
    requests: Requests = field(default=(), converter=check_requests)
    _id: list[str] = field(factory=list, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        for parent in self.parents:
            check_sha256(parent, "a parent's id")
        if len(set(self.parents)) != len(self.parents):
            raise PatchFormatError("a parent is named twice; each patch is on a stack once")
        if len({need.role for need in self.requires}) != len(self.requires):
            raise PatchFormatError("a role is required twice; give each requirement its own role")
        if self.seed is not None and (type(self.seed) is not int or self.seed < 0):
            raise PatchFormatError(f"the seed is {canonical.shown(self.seed)}; it is a whole number from 0, or null")
        for i, operation in enumerate(self.operations):
            if isinstance(operation, WEIGHT_OPERATIONS):
                known = self.base.tensors.get(operation.place)
                if known is None:
                    raise PatchFormatError(
                        f"operations[{i}] changes {operation.place!r}, which base.tensors does not describe; "
                        "describe every parameter that a patch changes"
                    )
                check_shape(operation, known.shape, known.layout)

    @classmethod
    def build(
        cls,
        *,
        method: Mapping[str, str],
        base: Base,
        operations: Sequence[Operation],
        hparams: Mapping[str, Any] | None = None,
        seed: int | None = None,
        parents: Sequence[str] = (),
        requires: Sequence[Requirement] = (),
        state_config: Mapping[str, Any] | None = None,
        state_tensors: Mapping[str, Tensor] | None = None,
        requests: Sequence[Mapping[str, Any]] | PrivateRequests = (),
    ) -> EditPatch:
        """A patch from plain parts: ``method`` has name, distribution and version."""
        return cls(
            method=MethodRef(**method),
            hparams=hparams or {},
            seed=seed,
            parents=parents,
            requires=requires,
            base=base,
            operations=operations,
            state=State(state_config or {}, state_tensors or {}),
            requests=requests,
        )

    # ------------------------------------------------------------------ identity and bytes

    @property
    def id(self) -> str:
        """SHA-256 of the patch's file."""
        if not self._id:
            self._id.append(container.write(_Nowhere(), *self._parts()))
        return self._id[0]

    @property
    def size(self) -> int:
        """Bytes of the patch's file."""
        tensors, manifest = self._parts()
        entries = [container.entry_of(name, tensor) for name, tensor in tensors.items()]
        return len(container.header_bytes(entries, manifest)) + sum(entry.nbytes for entry in entries)

    def _parts(self) -> tuple[dict[str, Tensor], bytes]:
        tensors = {f"{i}.{role}": tensor for i, op in enumerate(self.operations) for role, tensor in op.tensors.items()}
        tensors |= {f"state.{name}": tensor for name, tensor in self.state.tensors.items()}
        return tensors, canonical.dumps(self.manifest(), "the manifest")

    def manifest(self) -> dict[str, Any]:
        """The manifest as it stands in the file: plain JSON types."""
        return write_manifest(self)

    def to_bytes(self) -> bytes:
        """The patch's file as bytes; the same patch always gives the same bytes."""
        stream = io.BytesIO()
        self._write(stream)
        return stream.getvalue()

    def save(self, path: str | os.PathLike[str]) -> str:
        """Write the file beside ``path``, then put it there in one step; the patch's id.

        A link is followed. What is no ordinary file (a device, a pipe) is written to, never replaced by a file.

        Raises KeditError when the file cannot be written or a tensor was changed since the patch was built.
        """
        try:
            with replacing(path) as stream:
                return self._write(stream)
        except OSError as error:
            raise KeditError(f"the patch could not be written to {path}: {error.strerror or error}") from error

    def _write(self, stream: Any) -> str:
        tensors, manifest = self._parts()
        for tensor in tensors.values():
            own(Owned(tensor))
        digest = container.write(stream, tensors, manifest)
        if self._id and self._id[0] != digest:
            raise PatchFormatError("the patch's tensors or settings were changed after it was built; build a new patch")
        self._id[:] = [digest]
        return digest

    def __repr__(self) -> str:
        kinds = ", ".join(dict.fromkeys(operation.type for operation in self.operations)) or "no operation"
        if isinstance(self.requests, PrivateRequests):
            facts = "private requests"
        else:
            facts = f"{len(self.requests)} request{'s' * (len(self.requests) != 1)}"
        return f"<EditPatch {self.id[:12]} of {self.method.name}: {len(self.operations)} x {kinds}, {facts}>"

    # ------------------------------------------------------------------ reading

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        trust: Trust | None = None,
        signature: str | os.PathLike[str] | None = None,
    ) -> EditPatch:
        """Read and check a patch file.

        Args:
            trust: whose signature it must have, which is checked before anything in the file is looked at; by default
                what ``KEDIT_TRUSTED_KEYS`` asks for (see :mod:`kedit_core.patches.trust`).
            signature: the signature's file; by default ``path`` with ``.sig`` added.

        Raises InputError when there is no such file, UntrustedPatchError when the signature asked for is missing or
        does not fit, PatchFormatError when it is not a whole, canonical patch file.
        Memory: the size of the file, once the header has been checked against it. Time: linear in that size.
        """
        source = Path(path)
        with _opened(source) as (stream, size):
            signed = vouched(trust, stream, source.name, lambda: read_signature(source, signature))
            return cls._read(stream, size, source.name, signed)

    @classmethod
    def from_bytes(
        cls, data: bytes, source: str = "patch", *, trust: Trust | None = None, signature: bytes | None = None
    ) -> EditPatch:
        """As :meth:`load`, from a file's bytes and those of its signature."""
        stream = io.BytesIO(data)
        return cls._read(stream, len(data), source, vouched(trust, stream, source, lambda: signature))

    @classmethod
    def _read(cls, stream: BinaryIO, size: int, source: str, signed: str | None) -> EditPatch:
        try:
            header = container.read_header(stream, size)
            check_version(header.manifest)
            hasher = hashlib.sha256(header.raw)
            patch = cls(**read_manifest(header.manifest, container.read_tensors(stream, header, hasher)))
        except PatchFormatError as error:
            raise PatchFormatError(f"{source} is not a kedit patch of format {FORMAT}: {error}") from error
        except MemoryError as error:
            raise PatchFormatError(f"{source} needs more memory than there is; use a larger machine") from error
        check_unchanged(hasher.hexdigest(), signed, source)
        patch._id.append(hasher.hexdigest())
        return patch

    # ------------------------------------------------------------------ derived

    @property
    def places(self) -> tuple[str, ...]:
        """Every parameter and module it touches, in order, each once."""
        found: dict[str, None] = {}
        for operation in self.operations:
            if isinstance(operation, WEIGHT_OPERATIONS):
                found[operation.place] = None
            elif isinstance(operation, ModuleOperation):
                found |= dict.fromkeys(operation.places)
        return tuple(found)

    def summary(self) -> str:
        """A few lines for people: what it is, where it comes from, what it does."""
        from kedit_core.patches.summary import describe

        return describe(self)

    def states(self) -> tuple[State, ...]:
        """The method's state, one per joined part (one in all for a patch that was not joined)."""
        from kedit_core.patches.joining import split_state

        return split_state(self)

    @classmethod
    def join(cls, patches: Sequence[EditPatch]) -> EditPatch:
        """One patch that does what these do one after the other; see :func:`kedit_core.patches.joining.join`."""
        from kedit_core.patches.joining import join

        return join(patches)


class _Nowhere:
    """Takes bytes that are only hashed."""

    def write(self, data: Any) -> None:
        """Nothing is kept."""


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """An ordinary file and its size. A pipe or a device, which could block or never end, is not read from."""
    try:
        if not path.exists():
            raise InputError(f"there is no file {path}; check the path")
        if not path.is_file():
            raise PatchFormatError(f"{path} is not a file; give the path of a patch file")
        with open_regular(path) as stream:
            yield stream, os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise PatchFormatError(f"{path} could not be read: {error.strerror or error}") from error


@frozen(kw_only=True)
class Inspection:
    """What a patch file says of itself, read without its tensors.

    Attributes:
        id: SHA-256 of the file.
        size: bytes.
        manifest: as JSON.
        tensors: name -> (dtype, shape), in file order.
    """

    id: str
    size: int
    manifest: Mapping[str, Any]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]


def inspect(path: str | os.PathLike[str], *, trust: Trust | None = None) -> Inspection:
    """Look at a patch file: header and JSON are checked, tensors are only hashed; see :meth:`EditPatch.load` for all.

    Raises as :meth:`EditPatch.load`. Memory: the header.
    """
    source = Path(path)
    with _opened(source) as (stream, size):
        signed = vouched(trust, stream, source.name, lambda: read_signature(source, None))
        try:
            header = container.read_header(stream, size)
            check_version(header.manifest)
        except PatchFormatError as error:
            raise PatchFormatError(f"{source.name} is not a kedit patch of format {FORMAT}: {error}") from error
        hasher = hashlib.sha256(header.raw)
        while block := stream.read(1 << 20):
            hasher.update(block)
    check_unchanged(hasher.hexdigest(), signed, source.name)
    return Inspection(
        id=hasher.hexdigest(),
        size=size,
        manifest=header.manifest,
        tensors={entry.name: (dtype_name(entry.dtype), entry.shape) for entry in header.entries},
    )
