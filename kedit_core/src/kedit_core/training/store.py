"""Checkpoints of a training on disk: each one safetensors file, written beside and put in place in one step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from kedit_core.errors import InputError
from kedit_core.files import remove_unfinished, replacing

_KEY = "kedit_training"
_LAST, _BACKUP, _BEST = "last.safetensors", "backup.safetensors", "best-{}.safetensors"


class Store:
    """A folder with the last checkpoint, the one before it, and the best parameters of each.

    Whenever the process is killed, one of the first two is whole, and so are its best parameters.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, anew: bool) -> None:
        """Make the folder; ``anew`` removes the checkpoints that an earlier training left there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self.folder)
        if anew:
            for path in [self.folder / _LAST, self.folder / _BACKUP, *self.folder.glob(_BEST.format("*"))]:
                path.unlink(missing_ok=True)

    def standing(self) -> dict[str, Any] | None:
        """The state of the last checkpoint, without its tensors; None when there is none."""
        for name in (_LAST, _BACKUP):
            if (state := _state(self.folder / name)) is not None:
                return state
        return None

    def save_last(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write all that is needed to go on. ``state["best"]`` is None, or has the best's ``iteration``."""
        last, before = self.folder / _LAST, _state(self.folder / _LAST)
        with replacing(last) as stream:
            _write(tensors, state, Path(stream.name))
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
        """Write the best parameters so far; earlier ones stay until a checkpoint knows of these."""
        with replacing(self._best(iteration)) as stream:
            _write(tensors, state, Path(stream.name))

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


def _write(tensors: Mapping[str, Tensor], state: Mapping[str, Any], path: Path) -> None:
    """A checkpoint's file; nothing is copied in memory that is on the CPU already."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, path, metadata={_KEY: json.dumps(state, sort_keys=True, allow_nan=False)})
