"""Checkpoints of a training on disk: each one safetensors file, written beside and put in place in one step."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from kedit_core.errors import InputError, KeditError
from kedit_core.files import remove_unfinished, replacing
from kedit_core.patches.container import DTYPES
from kedit_core.patches.digests import byte_view

_KEY = "kedit_training"
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_LAST, _BACKUP, _BEST = "last.safetensors", "backup.safetensors", "best-{}.safetensors"
_WRITTEN = "written"  # there once the editor of a finished training has been written


class Store:
    """A folder with the last checkpoint, the one before it, and the best parameters of each.

    Whenever the process is killed, one of the first two is whole, and so are its best parameters.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, anew: bool) -> None:
        """Make the folder; ``anew`` removes the checkpoints that an earlier training left there.

        Raises InputError when that cannot be done.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_unfinished(self.folder)
            (self.folder / _WRITTEN).unlink(missing_ok=True)
            if anew:
                for path in [self.folder / _LAST, self.folder / _BACKUP, *self.folder.glob(_BEST.format("*"))]:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(
                f"checkpoints cannot be written to the folder {self.folder} ({error.strerror or error}); give the "
                "editor another name, or clear that one"
            ) from error

    @property
    def written(self) -> bool:
        """Whether the editor of the training has been written."""
        return (self.folder / _WRITTEN).exists()

    def note_written(self) -> None:
        """Note that it has: nothing is lost when the training is started over."""
        (self.folder / _WRITTEN).touch()

    def standing(self) -> dict[str, Any] | None:
        """The state of the last checkpoint, without its tensors; None when there is none."""
        for name in (_LAST, _BACKUP):
            if (state := _state(self.folder / name)) is not None:
                return state
        return None

    def save_last(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write all that is needed to go on. ``state["best"]`` is None, or has the best's ``iteration``.

        Raises KeditError when it cannot be written; what was there before is whole then.
        """
        last, before = self.folder / _LAST, _state(self.folder / _LAST)
        with _told(last), replacing(last) as stream:
            _write(tensors, state, stream)
            if last.exists():
                last.replace(self.folder / _BACKUP)
        wanted = {self._best(each["best"]["iteration"]) for each in (state, before) if each and each["best"]}
        for path in set(self.folder.glob(_BEST.format("*"))) - wanted:
            path.unlink(missing_ok=True)

    def last(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What :meth:`save_last` wrote last and whole. Raises InputError when there is nothing."""
        for name in (_LAST, _BACKUP):
            state = _state(self.folder / name)
            try:
                if state is not None:
                    return load_file(self.folder / name), state
            except (OSError, SafetensorError):
                continue
        raise InputError(f"{self.folder} holds no training to resume; leave resume out to start one")

    def save_best(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], iteration: int) -> None:
        """Write the best parameters so far; earlier ones stay until a checkpoint knows of these. Raises KeditError."""
        path = self._best(iteration)
        with _told(path), replacing(path) as stream:
            _write(tensors, state, stream)

    def best(self, iteration: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The parameters that were best at an iteration. Raises InputError when they cannot be read."""
        path = self._best(iteration)
        state = _state(path)
        try:
            if state is None:
                raise OSError("it is not there, or no checkpoint")
            return load_file(path), state
        except (OSError, SafetensorError) as error:
            raise InputError(f"the best parameters in {path} cannot be read ({error}); train anew") from error

    def _best(self, iteration: int) -> Path:
        return self.folder / _BEST.format(iteration)


def _state(path: Path) -> dict[str, Any] | None:
    """What a checkpoint says of itself; None when there is none that can be read."""
    try:
        with safe_open(path, "pt") as opened:
            state = json.loads((opened.metadata() or {})[_KEY])
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
    return state if isinstance(state, dict) else None


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What keeps a checkpoint from being written (a full disk) as a KeditError that says what to do."""
    try:
        yield
    except OSError as error:
        raise KeditError(
            f"the checkpoint {path} could not be written ({error.strerror or error}); make room, and run it again, "
            "with --resume where an earlier checkpoint is in that folder"
        ) from error


def _write(tensors: Mapping[str, Tensor], state: Mapping[str, Any], stream: BinaryIO) -> None:
    """A checkpoint's file, tensor by tensor; nothing is copied in memory that is on the CPU already.

    Written here rather than by the safetensors library, which puts a file of its own in place of the stream's. The
    state may hold NaN, as Python's JSON does: something that was measured may be no number.
    """
    fields: dict[str, Any] = {"__metadata__": {_KEY: json.dumps(state, sort_keys=True)}}
    # the widest elements first, so that every tensor is aligned
    names, offset = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)), 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.dtype.itemsize
        fields[name] = {
            "dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    header = json.dumps(fields).encode()
    header += b" " * (-len(header) % 8)
    stream.write(struct.pack("<Q", len(header)) + header)
    for name in names:
        if tensors[name].numel():
            stream.write(byte_view(tensors[name].detach().cpu().contiguous()))
    stream.flush()
