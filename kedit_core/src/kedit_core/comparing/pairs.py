"""Two model folders side by side, tensor by tensor: what a diff and an audit are made from."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from attrs import frozen

from kedit_core.errors import BaseMismatchError, InputError
from kedit_core.folders._checkpoint import INDEX, read_json
from kedit_core.folders._record import FOLDER
from kedit_core.folders._replacing import files_below
from kedit_core.folders._shards import FLOAT_DTYPES, Shard, file_digest
from kedit_core.folders.base import FolderBase

Status: TypeAlias = Literal[
    "same", "changed", "dtype", "shape", "untied", "only_in_base", "only_in_edited", "unnameable"
]

_ABSENT = object()
# what says where a file comes from, not what the model does
_ORIGIN = frozenset({"transformers_version", "_name_or_path", "name_or_path", "torch_dtype", "_from_model_config"})
_FOR_PEOPLE = ("*.md", "LICENSE*", "NOTICE*", ".*")


@frozen(kw_only=True)
class Paired:
    """One parameter (all its tied names together) or buffer of two folders.

    Attributes:
        place: the first of its names in BASE.
        status: ``same`` and ``changed`` compare bytes; the others say why values cannot be compared or named:
            ``unnameable`` is a change in something that no patch can name.
        why: of the others, in words.
        base_key, edited_key: where the files hold it; None when a file does not, or in parts.
        nbytes: its size in BASE.
    """

    place: str
    status: Status
    why: str = ""
    base_key: str | None = None
    edited_key: str | None = None
    nbytes: int = 0


@frozen(kw_only=True)
class FileDifference:
    """A file beside the weights that differs; ``keys``: of a JSON object, the keys whose values do."""

    name: str
    how: Literal["differs", "only_in_base", "only_in_edited"]
    keys: tuple[str, ...] = ()


@frozen
class FolderPair:
    """BASE and EDITED, opened for comparing; both are read as they are."""

    base: FolderBase
    edited: FolderBase

    @classmethod
    def open(
        cls, base: str | os.PathLike[str], edited: str | os.PathLike[str], *, originals: bool = False
    ) -> FolderPair:
        """Read configs and headers.

        Args:
            originals: of a BASE that kedit edited, take the weights before the edits.

        Raises:
            InputError: no model folder, one whose weights cannot be read (pickled, quantised, an adapter beside), or
                ``originals`` for a folder that kedit has not edited.
            BaseMismatchError: they hold different architectures.
            StackDisturbedError: ``originals`` for a folder that is not as kedit left it.
        """
        pair = cls(FolderBase.open(base, present=not originals), FolderBase.open(edited, present=True))
        if originals and pair.base.history is None:
            raise InputError(f"{base} was not edited by kedit, so it holds no originals; leave that option out")
        if (one := pair.base.names.architecture) != (other := pair.edited.names.architecture):
            raise BaseMismatchError(
                f"{base} holds a {one} and {edited} a {other}; compare two checkpoints of one architecture"
            )
        return pair

    @property
    def nbytes(self) -> int:
        """Bytes of BASE's tensors."""
        return sum(entry.nbytes for shard in self.base.checkpoint.shards.values() for entry in shard.entries.values())

    @property
    def on_patches(self) -> bool:
        """Whether kedit edited BASE, and it is read with these edits."""
        return self.base.history is None and (self.base.checkpoint.folder / FOLDER).exists()

    @property
    def unread(self) -> tuple[str, ...]:
        """Stored tensors that the model does not read, of either folder: they have no part in what it does."""
        return tuple(sorted(self.base.names.unknown | self.edited.names.unknown))

    def tensors(self) -> Iterator[Paired]:
        """Every parameter in the order of ``named_parameters``, then buffers; bytes are compared one by one."""
        seen: set[str] = set()
        names, checkpoint = self.base.names, self.base.checkpoint
        for place in names.shapes:
            if place not in seen:
                group = names.in_order(names.tied(place, checkpoint))
                seen.update(group)
                if (found := self._parameter(group)) is not None:
                    yield found
        for place in self.edited.names.shapes:
            if place not in names.shapes:
                yield Paired(place=place, status="only_in_edited", why="BASE's model has no such parameter")
        for name in sorted(names.buffers | self.edited.names.buffers):
            yield self._in_parts((name,), "a buffer, and patches change parameters only")

    def _parameter(self, group: tuple[str, ...]) -> Paired | None:
        place = group[0]
        theirs = self.edited.names.shapes.get(place)
        if theirs is None:
            return Paired(place=place, status="only_in_base", why="EDITED's model has no such parameter")
        if (shape := self.base.names.shapes[place]) != theirs:
            return Paired(place=place, status="shape", why=f"shape {list(theirs)}, and {list(shape)} in BASE")
        lacking = [
            (status, _holder(status))
            for status, side in (("only_in_edited", self.base), ("only_in_base", self.edited))
            if not all(name in side.names.shapes and _holds(side, name) for name in group)
        ]
        if lacking:
            return None if len(lacking) == 2 else _lacking(place, lacking[0][0])
        try:
            key, *_ = self.base.stored(place)
            edited_keys = tuple(dict.fromkeys(key for name in group for key in self.edited.stored(name)))
        except InputError:
            return self._in_parts(group, self._odd_form(group))
        edited_key = edited_keys[0]
        entry, other = self.base.checkpoint.entry(key), self.edited.checkpoint.entry(edited_key)
        status: Status = "same"
        why = ""
        if len(edited_keys) > 1 and len({self.edited.shard(each).digest(each) for each in edited_keys}) > 1:
            status, why = "untied", f"one parameter with {', '.join(group[1:]) or 'itself'} in BASE, and two in EDITED"
        elif entry.dtype != other.dtype:
            status, why = "dtype", f"stored as {other.dtype}, and as {entry.dtype} in BASE"
        elif not same_bytes(self.base.shard(key), key, self.edited.shard(edited_key), edited_key):
            status = "changed"
        return Paired(place=place, status=status, why=why, base_key=key, edited_key=edited_key, nbytes=entry.nbytes)

    def _odd_form(self, names: tuple[str, ...]) -> str:
        """How a parameter is stored that cannot be edited on disk."""
        entries = (side.checkpoint.entry(key) for side in (self.base, self.edited) for key in _keys_of(side, names))
        odd = sorted({entry.dtype for entry in entries} - FLOAT_DTYPES.keys())
        return f"stored as {' and '.join(odd)}" if odd else "stored in a form that no patch can name"

    def _in_parts(self, names: tuple[str, ...], what: str) -> Paired:
        """What is compared by its stored tensors alone."""
        keys, theirs = _keys_of(self.base, names), _keys_of(self.edited, names)
        if not keys or not theirs:
            return _lacking(names[0], "only_in_base" if keys else "only_in_edited")
        same = sorted(keys) == sorted(theirs) and all(
            self.base.checkpoint.entry(key).dtype == self.edited.checkpoint.entry(key).dtype
            and self.base.checkpoint.entry(key).shape == self.edited.checkpoint.entry(key).shape
            and same_bytes(self.base.shard(key), key, self.edited.shard(key), key)
            for key in keys
        )
        nbytes = sum(self.base.checkpoint.entry(key).nbytes for key in keys)
        return Paired(place=names[0], status="same" if same else "unnameable", why="" if same else what, nbytes=nbytes)

    def config_keys(self) -> tuple[str, ...]:
        """Keys of config.json whose values differ, defaults filled in; what only tells its origin is left out."""
        return _keys(self.base.names.config, self.edited.names.config)

    def files(self) -> Iterator[FileDifference]:
        """Files beside weights and config.json that differ (tokenizer, generation settings, code); texts for people
        and hidden files are left out, and JSON is compared by its values."""
        base, edited = (_others(side) for side in (self.base, self.edited))
        for name in sorted(base.keys() | edited.keys()):
            if name not in edited:
                yield FileDifference(name=name, how="only_in_base")
            elif name not in base:
                yield FileDifference(name=name, how="only_in_edited")
            elif file_digest(base[name]) != file_digest(edited[name]):
                keys = _json_keys(base[name], edited[name])
                if keys is None or keys:
                    yield FileDifference(name=name, how="differs", keys=keys or ())


def same_bytes(one: Shard, key: str, other: Shard, other_key: str) -> bool:
    """Whether two stored tensors have the same bytes; read in pieces, up to the first that differs."""
    if one.entries[key].nbytes != other.entries[other_key].nbytes:
        return False
    return all(mine == theirs for mine, theirs in zip(one.raw(key), other.raw(other_key), strict=True))


def _keys_of(side: FolderBase, names: tuple[str, ...]) -> list[str]:
    return [key for name in names for key in side.names.keys(name)]


def _holds(side: FolderBase, name: str) -> bool:
    return any(side.names.keys(each) for each in side.names.tied(name, side.checkpoint))


def _lacking(place: str, status: Any) -> Paired:
    return Paired(place=place, status=status, why=f"the files of {_holder(status)} do not hold it")


def _holder(status: str) -> str:
    return "EDITED" if status == "only_in_base" else "BASE"


def _keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    every = (one.keys() | other.keys()) - _ORIGIN
    return tuple(sorted(key for key in every if one.get(key, _ABSENT) != other.get(key, _ABSENT)))


def _json_keys(one: Path, other: Path) -> tuple[str, ...] | None:
    """Keys of two JSON objects that differ; None for files that are none."""
    if one.suffix != ".json":
        return None
    try:
        return _keys(read_json(one, "it"), read_json(other, "it"))
    except InputError:
        return None


def _others(side: FolderBase) -> dict[str, Path]:
    folder = side.checkpoint.folder
    skip = frozenset({FOLDER, INDEX, "config.json", *side.checkpoint.shards})
    found = {path.as_posix(): folder / path for path in files_below(folder, skip) if (folder / path).is_file()}
    return {
        name: path
        for name, path in found.items()
        if not any(fnmatch.fnmatchcase(part, pattern) for part in Path(name).parts for pattern in _FOR_PEOPLE)
    }
