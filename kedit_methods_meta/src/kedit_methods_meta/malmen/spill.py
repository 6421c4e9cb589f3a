"""Rows of tokens kept in files instead of memory, for more edits than memory has room for."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from kedit_core.errors import InputError
from kedit_methods_meta.factors import Factors

OPTION = "spill"


def spill_folder(options: Mapping[str, Any]) -> Path | None:
    """The folder of the option ``spill``, or None without it. Raises InputError when it is not there."""
    given = options.get(OPTION)
    if given is None:
        return None
    folder = Path(given) if isinstance(given, str | Path) else None
    if folder is None or not folder.is_dir():
        raise InputError(
            f"there is no folder {given!r} to spill into; give spill the path of one with room on its disk"
        )
    return folder


class _Rows:
    """Rows ``[N, width]`` appended to a file without a name, which is gone with the tensor that is mapped from it."""

    def __init__(self, folder: Path) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed once it is mapped)
        self._like = torch.empty(0, 0)
        self._count = 0

    def add(self, rows: Tensor) -> None:
        self._like, self._count = rows[:0].cpu(), self._count + len(rows)
        self._file.write(rows.cpu().contiguous().numpy().tobytes())

    def mapped(self) -> Tensor:
        with self._file:
            if not self._count:
                return self._like
            self._file.flush()
            shape = self._count, self._like.shape[1]
            # copy on write: a tensor has to be writable, and the file is not to be written
            return torch.from_numpy(np.memmap(self._file, self._like.numpy().dtype, mode="c", shape=shape))


class Spill:
    """Factors gathered part by part: inputs and gradients in files, which edit each row is of in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[str, tuple[_Rows, _Rows, list[Tensor]]] = {}

    def add(self, factors: Mapping[str, Factors]) -> None:
        """Append the rows of later edits, by name of weight."""
        for name, each in factors.items():
            if name not in self._kept:
                self._kept[name] = _Rows(self._folder), _Rows(self._folder), []
            inputs, gradients, edit = self._kept[name]
            inputs.add(each.inputs)
            gradients.add(each.gradients)
            edit.append(each.edit.cpu())

    def factors(self) -> dict[str, Factors]:
        """All rows, mapped into memory: read from the disk where they are used. Nothing can be added any more."""
        return {
            name: Factors(inputs.mapped(), gradients.mapped(), torch.cat(edit))
            for name, (inputs, gradients, edit) in self._kept.items()
        }
