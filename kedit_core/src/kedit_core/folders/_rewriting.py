"""Writing a model folder anew with patches on it, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen
from torch import Tensor

from kedit_core.folders._checkpoint import Checkpoint
from kedit_core.folders._record import FOLDER, EditedTensor, History, originals, write_history
from kedit_core.folders._replacing import files_below, written_beside
from kedit_core.folders._shards import OnBytes, copy_file, digest_of
from kedit_core.patches.digests import byte_view
from kedit_core.patches.format import EditPatch
from kedit_core.patches.operations import WEIGHT_OPERATIONS
from kedit_core.patches.weights import form_weight

if TYPE_CHECKING:
    from kedit_core.editing.progress import Progress

_PIECE = 8 << 20


@frozen(kw_only=True)
class FolderChange:
    """What was written.

    Attributes:
        folder: where.
        patches: ids of the patches on it now, in stack order.
        tensors: stored tensors that now differ from the original folder.
        orphans: ids of patches still on it whose parents are not.
        rounded_to: dtype that a touched tensor is stored in while config.json has the model loaded in another: the edit
            is rounded to it, so it is not bit for bit the edit of the loaded model. None when the two agree.
    """

    folder: Path
    patches: tuple[str, ...]
    tensors: tuple[str, ...]
    orphans: tuple[str, ...] = ()
    rounded_to: str | None = None


@frozen
class Rewrite:
    """A folder about to be written.

    Attributes:
        checkpoint: the folder it is made from, edited or not; ``history`` when edited.
        stack: the patches to be on it, in order, each with whether it was forced.
        place_of: stored tensor -> parameter, for all that these patches change.
    """

    checkpoint: Checkpoint
    history: History | None
    stack: Sequence[tuple[EditPatch, bool]]
    place_of: Mapping[str, str]

    def write(self, target: Path, progress: Progress | None) -> FolderChange:
        """Write it beside ``target`` and put it there in one step; a failure at any point leaves nothing of it."""
        folder, shards = self.checkpoint.folder, self.checkpoint.shards
        others = list(files_below(folder, skip=frozenset({FOLDER, *shards})))
        every = [folder / path for path in (*others, *map(Path, shards))]
        size = sum(path.stat().st_size for path in every if path.is_file())
        undo = sum(self.checkpoint.entry(key).nbytes for key in self.place_of)
        room = size + undo + sum(patch.size for patch, _ in self.stack)
        edited: dict[str, str] = {}
        with written_beside(target, room) as fresh, _reporting(progress, f"writing {target.name}", size) as done:
            for path in others:
                if (folder / path).is_dir():
                    (fresh / path).mkdir()
                else:
                    copy_file(folder / path, fresh / path, done)
            for name, shard in shards.items():
                shard.copy(fresh / name, self._changes(name, edited), done)
            if self.stack:
                entries = {key: self.checkpoint.entry(key) for key in self.place_of}
                write_history(fresh, self.stack, entries, self._original, self._tensors(edited))
        return self._change(target)

    def _change(self, target: Path) -> FolderChange:
        ids = tuple(patch.id for patch, _ in self.stack)
        orphans = tuple(patch.id for patch, _ in self.stack if not set(patch.parents) <= set(ids))
        return FolderChange(folder=target, patches=ids, tensors=tuple(sorted(self.place_of)), orphans=orphans)

    def _changes(self, file: str, edited: dict[str, str]) -> dict[str, Callable[[], Iterable[bytes]]]:
        """What to write over the copy of a file: edited tensors, and originals of those that are edited no longer.

        Digests of edited tensors are put into ``edited`` when their bytes are made.
        """
        formerly = {} if self.history is None else self.history.record.tensors
        return {
            key: self._maker(key, edited)
            for key in self.checkpoint.shards[file].entries
            if key in self.place_of or key in formerly
        }

    def _maker(self, key: str, edited: dict[str, str]) -> Callable[[], Iterable[bytes]]:
        def make() -> Iterable[bytes]:
            if key not in self.place_of:
                return self._original(key)
            weight = self._weight(key)
            edited[key] = digest_of(_bytes(weight))
            return _bytes(weight)

        return make

    def _original(self, key: str) -> Iterator[bytes]:
        return originals(self.checkpoint, self.history, key).raw(key)

    def _weight(self, key: str) -> Tensor:
        """The parameter with all its patches, by the formula of the live stack."""
        base = originals(self.checkpoint, self.history, key).tensor(key)
        place = self.place_of[key]
        patches = [patch for patch, _ in self.stack if place in patch.base.tensors]
        operations = [
            operation
            for patch in patches
            for operation in patch.operations
            if isinstance(operation, WEIGHT_OPERATIONS) and operation.place == place
        ]
        weight, _ = form_weight(base, patches[0].base.tensors[place].layout, operations)
        return weight

    def _tensors(self, edited: Mapping[str, str]) -> dict[str, EditedTensor]:
        return {
            key: EditedTensor(
                place=place,
                file=self.checkpoint.file_of[key],
                original=digest_of(self._original(key)),
                edited=edited[key],
            )
            for key, place in self.place_of.items()
        }


def _bytes(tensor: Tensor) -> Iterator[bytes]:
    view = byte_view(tensor.contiguous())
    for start in range(0, len(view), _PIECE):
        yield bytes(view[start : start + _PIECE])


@contextmanager
def _reporting(progress: Progress | None, text: str, total: int) -> Iterator[OnBytes]:
    if progress is None:
        yield lambda _: None
        return
    with progress(text, total=total) as step:
        yield lambda count: step.advance(count)
