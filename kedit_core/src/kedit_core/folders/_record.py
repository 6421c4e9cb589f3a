"""What an edited folder keeps in ``.kedit``: its stack, the patches themselves, and the originals of edited tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cattrs
from attrs import asdict, field, frozen
from attrs.validators import matches_re

from kedit_core.errors import InputError, KeditError, StackDisturbedError
from kedit_core.folders._checkpoint import Checkpoint, read_json
from kedit_core.folders._shards import Entry, Shard, file_digest, write_file, write_shard
from kedit_core.patches.format import EditPatch
from kedit_core.patches.trust import ANYONE

FOLDER = ".kedit"
_STACK = "stack.json"
_UNDO = "undo.safetensors"
_PATCHES = "patches"
_FORMAT = 1


@frozen(kw_only=True)
class OnDisk:
    """A patch of an edited folder; ``forced`` when it was put on although the base is not the one it was made for."""

    id: str = field(validator=matches_re(r"[0-9a-f]{64}"))  # it also names a file
    method: str
    forced: bool = False


@frozen(kw_only=True)
class EditedTensor:
    """A stored tensor that patches changed; both digests are over its bytes as stored."""

    place: str
    file: str
    original: str
    edited: str


@frozen(kw_only=True)
class Record:
    """The content of ``.kedit/stack.json``: patches in stack order, and every tensor they changed."""

    patches: tuple[OnDisk, ...]
    tensors: Mapping[str, EditedTensor]
    undo: str

    def to_bytes(self) -> bytes:
        """Canonical JSON, with a digest of itself."""
        content = {"format": _FORMAT, **asdict(self)}
        return _canonical({**content, "sha256": _digest(content)})


@frozen
class History:
    """An edited folder's record with its files opened and checked."""

    record: Record
    patches: tuple[EditPatch, ...]
    undo: Shard

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> History | None:
        """The history of a folder, or None when kedit has not edited it.

        Raises:
            StackDisturbedError: the record, a kept patch or the originals are not those that kedit wrote, or an edited
                tensor was changed by something else since.
        """
        home = checkpoint.folder / FOLDER
        if not home.exists():
            return None
        record = _read_record(home / _STACK)
        undo_path = home / _UNDO
        try:
            if file_digest(undo_path) != record.undo:
                raise _disturbed(undo_path, "its digest is not the recorded one")
            undo = Shard.open(undo_path)
            files = [home / _PATCHES / f"{patch.id}.safetensors" for patch in record.patches]
            # who could change these copies could change the weights beside them; no signature is asked for
            patches = tuple(EditPatch.load(file, trust=ANYONE) for file in files)
        except (OSError, InputError) as error:
            raise _disturbed(home, str(error)) from error
        if not patches or tuple(patch.id for patch in patches) != tuple(patch.id for patch in record.patches):
            raise _disturbed(home / _PATCHES, "a patch's id is not the recorded one")
        for key, tensor in record.tensors.items():
            _check_tensor(key, tensor, undo, checkpoint)
        return cls(record, patches, undo)


def originals(checkpoint: Checkpoint, history: History | None, key: str) -> Shard:
    """The file that holds a stored tensor as it was before any edit."""
    if history is not None and key in history.record.tensors:
        return history.undo
    return checkpoint.shard(key)


def write_history(
    folder: Path,
    patches: Sequence[tuple[EditPatch, bool]],
    entries: Mapping[str, Entry],
    raw: Callable[[str], Iterable[bytes]],
    tensors: Mapping[str, EditedTensor],
) -> None:
    """Write ``folder/.kedit``: the patches (with whether each was forced), the originals (``raw``), then the record."""
    home = folder / FOLDER
    (home / _PATCHES).mkdir(parents=True)
    for patch, _ in patches:
        write_file(home / _PATCHES / f"{patch.id}.safetensors", patch.to_bytes())
    undo = write_shard(home / _UNDO, entries, raw)
    on_disk = tuple(OnDisk(id=patch.id, method=patch.method.name, forced=forced) for patch, forced in patches)
    write_file(home / _STACK, Record(patches=on_disk, tensors=tensors, undo=undo).to_bytes())


def _check_tensor(key: str, tensor: EditedTensor, undo: Shard, checkpoint: Checkpoint) -> None:
    if key not in undo.entries or undo.digest(key) != tensor.original:
        raise _disturbed(undo.path, f"the original of {key} is not the recorded one")
    if checkpoint.file_of.get(key) != tensor.file:
        raise _disturbed(checkpoint.folder, f"{key} is not in {tensor.file}")
    now, then = checkpoint.entry(key), undo.entries[key]
    if (now.dtype, now.shape) != (then.dtype, then.shape) or checkpoint.shard(key).digest(key) != tensor.edited:
        raise _disturbed(checkpoint.folder, f"{key} was changed by something else after kedit edited it")


def _read_record(path: Path) -> Record:
    try:
        content = read_json(path, "the folder's record is broken")
        claimed = content.pop("sha256", None)
        if content.pop("format", None) != _FORMAT:
            raise ValueError("another format than this kedit writes")
        if claimed != _digest({"format": _FORMAT, **content}):
            raise ValueError("its own digest does not fit")
        converter = cattrs.Converter(forbid_extra_keys=True)
        return converter.structure(content, Record)
    except (KeditError, ValueError, TypeError, cattrs.BaseValidationError) as error:
        raise _disturbed(path, str(error)) from error


def _disturbed(where: Path, what: str) -> StackDisturbedError:
    return StackDisturbedError(
        f"{where} is not as kedit left it ({what}); nothing was written, so start again from the original folder"
    )


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()
