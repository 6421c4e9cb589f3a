"""Checkpoints of a training on disk: each one safetensors file, written beside and put in place in one step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from kedit_core.errors import InputError
from kedit_core.files import remove_unfinished, replacing

_KEY = "kedit_training"
_LAST, _BACKUP, _BEST = "last.safetensors", "backup.safetensors", "best.safetensors"


class Store:
    """A folder with the last checkpoint, the one before it, and the best parameters.

    Whenever the process is killed, one of the first two is whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, anew: bool) -> None:
        """Make the folder; ``anew`` removes what an earlier training left there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self.folder)
        if anew:
            for name in (_LAST, _BACKUP, _BEST):
                (self.folder / name).unlink(missing_ok=True)

    def save_last(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write all that is needed to go on."""
        last = self.folder / _LAST
        with replacing(last) as stream:
            stream.write(_bytes(tensors, state))
            if last.exists():
                last.replace(self.folder / _BACKUP)

    def last(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What :meth:`save_last` wrote last and whole. Raises InputError when there is nothing."""
        for name in (_LAST, _BACKUP):
            try:
                with safe_open(self.folder / name, "pt") as opened:
                    state = json.loads((opened.metadata() or {})[_KEY])
                return load_file(self.folder / name), state
            except (OSError, SafetensorError, ValueError, KeyError):
                continue
        raise InputError(f"{self.folder} holds no training to resume; leave resume out to start one")

    def save_best(self, tensors: Mapping[str, Tensor], iteration: int) -> None:
        """Write the best parameters so far."""
        with replacing(self.folder / _BEST) as stream:
            stream.write(_bytes(tensors, {"iteration": iteration}))

    def best(self) -> dict[str, Tensor]:
        """The best parameters. Raises InputError when there are none."""
        try:
            best: dict[str, Tensor] = load_file(self.folder / _BEST)
            return best
        except (OSError, SafetensorError) as error:
            raise InputError(f"the best parameters in {self.folder} cannot be read ({error}); train anew") from error


def _bytes(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> bytes:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    written: bytes = save(plain, metadata={_KEY: json.dumps(state, sort_keys=True, allow_nan=False)})
    return written
