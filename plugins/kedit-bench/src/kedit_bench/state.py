"""What a running benchmark keeps on disk, so that a killed one goes on where it was.

A cell's folder holds ``settings.json`` (what its results follow from), a file for each finished part and the patches of
a sequence's finished parts; at the end ``result.json`` stands in place of the parts. Every file is written beside and
renamed, and carries a digest of its content: what is broken, or is for other settings, counts as not there.

Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen
from filelock import FileLock, Timeout

from kedit_core.errors import InputError, KeditError
from kedit_core.files import remove_unfinished, replacing

if TYPE_CHECKING:
    from kedit_core.patches import EditPatch

FORMAT = 1
_LOCK = "bench.lock"


@frozen
class CellState:
    """The folder of one cell.

    Attributes:
        folder: made when first written to.
        cell_id: of the cell whose state it is; see :func:`kedit_bench.cells.id_of`.
    """

    folder: Path
    cell_id: str

    def read(self, name: str) -> dict[str, Any] | None:
        """What was written under a name for this very cell, or None."""
        try:
            data = json.loads((self.folder / f"{name}.json").read_bytes())
            content: dict[str, Any] = data["content"]
            fits = data["format"] == FORMAT and data["cell"] == self.cell_id and data["sha256"] == _digest(content)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return content if fits else None

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Keep something under a name, in one step. Raises KeditError when it cannot be written."""
        data = {"format": FORMAT, "cell": self.cell_id, "sha256": _digest(content), "content": content}
        write_json(self.folder / f"{name}.json", data)

    def part(self, number: int) -> dict[str, Any] | None:
        """A finished part, or None."""
        return self.read(f"part-{number:04}")

    def finish_part(self, number: int, content: Mapping[str, Any]) -> None:
        """Keep a finished part."""
        self.write(f"part-{number:04}", content)

    def save_patch(self, number: int, patch: EditPatch) -> None:
        """Keep the patch of a part of a sequence; to be called before the part is finished."""
        self.folder.mkdir(parents=True, exist_ok=True)
        patch.save(self._patch(number))

    def patch(self, number: int, patch_id: str) -> EditPatch | None:
        """The patch of a finished part, or None when its file is not there or not that patch."""
        from kedit_core.patches import EditPatch
        from kedit_core.patches.trust import ANYONE

        try:
            patch = EditPatch.load(self._patch(number), trust=ANYONE)  # our own file, which nobody signs
        except KeditError:
            return None
        return patch if patch.id == patch_id else None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Keep the cell's result, which holds all that its parts do, and remove what only a cell that goes on needs."""
        self.write("result", result)
        for path in (*self.folder.glob("part-*.json"), *self.folder.glob("segment-*.safetensors")):
            with suppress(OSError):
                path.unlink()

    def _patch(self, number: int) -> Path:
        return self.folder / f"segment-{number:04}.safetensors"


def write_json(path: Path, data: Any) -> None:
    """Write JSON in one step. Raises KeditError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as stream:
            stream.write((json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise _unwritable(path, error) from error


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """A folder for one run at a time: a second one is refused (InputError) while the process of the first lives.

    The system keeps the lock, so a process that is killed lets go of it. Files that it was writing are removed. Raises
    KeditError when the folder cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / _LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise InputError(
            f"another process is running a benchmark in {root}; wait for it, or give another folder"
        ) from None
    except OSError as error:
        raise _unwritable(root, error) from error
    try:
        remove_unfinished(root)
        yield
    finally:
        lock.release()


def _unwritable(path: Path, error: OSError) -> KeditError:
    return KeditError(f"{path} cannot be written ({error.strerror or error}); make room, or give another -o")


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
