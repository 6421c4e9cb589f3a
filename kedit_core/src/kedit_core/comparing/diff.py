"""A patch from two checkpoints: ``diff_folders`` reads both, one tensor at a time, and loads no model.

Of every parameter that differs the patch has one operation, which is put on the base as a patch would be and compared:
by default the result is EDITED bit for bit, in the dtype of the files and in the one that config.json has them loaded
in. With a rank it may hold low-rank deltas instead, whose error is told. What a patch cannot hold (configuration,
tokenizer) is told too.
"""

from __future__ import annotations

import fnmatch
import math
import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING

from kedit_core.comparing.difference import Difference, PlaceDifference
from kedit_core.comparing.exact import exact_operation, finite, size_of
from kedit_core.comparing.low_rank import low_rank_operation
from kedit_core.comparing.pairs import FolderPair, Paired
from kedit_core.errors import BaseMismatchError, InputError, KeditError
from kedit_core.folders._record import FOLDER
from kedit_core.patches.digests import tensor_digest
from kedit_core.patches.format import Base, BaseTensor, EditPatch, MethodRef, State
from kedit_core.patches.operations import LowRankDelta, SparseDelta, WeightOperation

if TYPE_CHECKING:
    from kedit_core.editing.progress import Progress

__all__ = ["TOLERANCE", "Difference", "PlaceDifference", "diff_folders"]

METHOD = "diff"
TOLERANCE = 1e-3


def diff_folders(
    base_folder: str | os.PathLike[str],
    edited_folder: str | os.PathLike[str],
    *,
    rank: int | None = None,
    tolerance: float = TOLERANCE,
    places: Sequence[str] = (),
    originals: bool = False,
    name: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Difference:
    """The patch that makes the weights in ``base_folder`` into those in ``edited_folder``.

    Both are read as they are, whatever ``.kedit`` says of them; neither is written to. How the files are cut, and the
    order of tensors in them, do not matter. The same input gives the same patch. Memory: the patch, and a few times
    one parameter.

    Args:
        rank: take low-rank deltas of up to this rank where their error is within ``tolerance`` and they are smaller.
        tolerance: see :attr:`PlaceDifference.error`.
        places: patterns (``*``, ``?``) of the parameters wanted; all, unless given.
        originals: of a base folder that kedit edited, take the weights before the edits.
        name: Hub id or registered name of the base; ``revision`` of a Hub model.
        progress: called as ``progress(text, total=bytes)``.

    Raises:
        InputError: a folder that cannot be read, settings that make no sense, or NaN or infinity in EDITED.
        BaseMismatchError: what differs is more than values: architecture, shapes, dtypes, ties, parameters that only
            one has, buffers.
        KeditError: nothing differs (in what was asked for).
    """
    _check_settings(rank, tolerance)
    pair = FolderPair.open(base_folder, edited_folder, originals=originals)
    _check_patterns(places, pair)
    changed: list[Paired] = []
    left_out: list[Paired] = []
    with progress("comparing", total=pair.nbytes) if progress is not None else nullcontext() as step:
        for found in pair.tensors():
            if found.status != "same":
                wanted = not places or _matches(found.place, places)
                (changed if wanted else left_out).append(found)
            if step is not None:
                step.advance(found.nbytes)
    _check_changes(changed, pair, bool(left_out))
    operations: list[WeightOperation] = []
    told: list[PlaceDifference] = []
    tensors: dict[str, BaseTensor] = {}
    edited: dict[str, str] = {}
    total = sum(found.nbytes for found in changed)
    with progress("computing the patch", total=total) if progress is not None else nullcontext() as step:
        for found in changed:
            operation, digest, place = _operation(found, pair, rank, tolerance)
            operations.append(operation)
            told.append(place)
            tensors[found.place] = pair.base.describe(found.place)
            edited[found.place] = digest
            if step is not None:
                step.advance(found.nbytes)
    patch = EditPatch(
        method=MethodRef(name=METHOD, distribution="kedit-core", version=version("kedit-core")),
        hparams={"rank": rank, "tolerance": tolerance if rank is not None else None, "places": list(places)},
        base=Base(
            name=name,
            revision=revision,
            architecture=pair.base.names.architecture,
            config_sha256=pair.base.names.config_sha256,
            tensors=tensors,
        ),
        operations=operations,
        state=State({"edited_sha256": edited}),
    )
    return Difference(
        patch=patch,
        places=tuple(told),
        left_out=tuple(found.place for found in left_out),
        notes=tuple(_notes(pair, left_out)),
    )


def _operation(
    found: Paired, pair: FolderPair, rank: int | None, tolerance: float
) -> tuple[WeightOperation, str, PlaceDifference]:
    """The operation for one parameter, the digest of what EDITED has there, and what to tell."""
    place, key = found.place, found.edited_key or ""
    base, edited = pair.base.tensor(place), pair.edited.shard(key).tensor(key)
    if not finite(edited):
        raise InputError(
            f"{place} in {pair.edited.checkpoint.folder} holds NaN or infinity, which a patch never does; look for the "
            "step that diverged, or leave this place out"
        )
    digest, layout = tensor_digest(edited), pair.base.names.layouts[place]
    loaded = pair.base.names.loaded_dtype(place, base.dtype)
    operation = exact_operation(place, base, edited, layout, loaded)
    refused = None
    if rank is not None:
        low = low_rank_operation(place, base, edited, layout, rank, tolerance, loaded)
        if low is not None and size_of(low.operation) < size_of(operation):
            if low.exact or low.error <= tolerance:
                return low.operation, digest, _told(low.operation, low.exact, low.error)
            refused = low.error if math.isfinite(low.error) else None  # a product may leave float16's range
    return operation, digest, _told(operation, True, 0.0, refused)


def _told(operation: WeightOperation, exact: bool, error: float, refused: float | None = None) -> PlaceDifference:
    return PlaceDifference(
        place=operation.place,
        operation=operation.type,
        axis=operation.axis if isinstance(operation, SparseDelta) else None,
        rank=operation.rank if isinstance(operation, LowRankDelta) else None,
        exact=exact,
        error=error,
        refused_error=refused,
        nbytes=size_of(operation),
    )


def _check_settings(rank: int | None, tolerance: float) -> None:
    if rank is not None and rank < 1:
        raise InputError(f"a low-rank delta has a rank of at least 1, not {rank}; give another, or none for exact ones")
    if not 0 <= tolerance < 1:
        raise InputError(f"the tolerance is a share of the change, from 0 to below 1, not {tolerance}")


def _check_patterns(patterns: Sequence[str], pair: FolderPair) -> None:
    known = pair.base.names.shapes
    for pattern in patterns:
        if not any(_matches(name, (pattern,)) for name in known):
            raise InputError(
                f"no parameter of {pair.base.names.architecture} is called like {pattern!r}; names are those of "
                f"named_parameters(), such as {next(iter(known), 'none')}"
            )


def _matches(place: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(place, pattern) for pattern in patterns)


_REMEDIES = {
    "dtype": "load both in one dtype and save them, then take those",
    "shape": "a patch keeps every shape, so resize the base the same way first",
    "untied": "a patch changes tied names together, so untie the base the same way first (tie_word_embeddings=False)",
    "only_in_base": "a patch changes values only, so take checkpoints with the same parameters",
    "only_in_edited": "a patch changes values only, so take checkpoints with the same parameters",
    "unnameable": "hand this change on as a checkpoint",
}


def _check_changes(changed: Sequence[Paired], pair: FolderPair, left_out: bool) -> None:
    """Refuse what no patch can say, and two folders of the same weights."""
    others = [found for found in changed if found.status != "changed"]
    if others:
        first, more = others[0], len(others) - 1
        which = f", or leave {'this place' if not more else 'these places'} out" if len(others) < len(changed) else ""
        raise BaseMismatchError(
            f"no patch can make {pair.base.checkpoint.folder} into {pair.edited.checkpoint.folder}: {first.place} "
            f"differs in more than its values ({first.why}){f', and so do {more} more' if more else ''}; "
            f"{_REMEDIES[first.status]}{which}"
        )
    if not changed:
        where = "at the places that were asked for" if left_out else "in every weight"
        raise KeditError(
            f"{pair.base.checkpoint.folder} and {pair.edited.checkpoint.folder} agree {where}, so there is nothing to "
            "put in a patch; nothing was written"
        )


def _notes(pair: FolderPair, left_out: Sequence[Paired]) -> Iterable[str]:
    if left_out:
        yield f"{len(left_out)} more parameters differ and were not asked for, so the patch does not give all of EDITED"
    if pair.on_patches:
        yield (
            "BASE has patches of kedit on it, and this one is for its weights as they are: put it on the model loaded "
            f"from BASE, or on a copy without {FOLDER}; with originals it is for the weights from before them"
        )
    if keys := pair.config_keys():
        yield f"config.json differs in {', '.join(keys)}; a patch holds weights only"
    for each in pair.files():
        if each.how == "differs":
            where = f" in {', '.join(each.keys)}" if each.keys else ""
            yield f"{each.name} differs{where}; a patch holds weights only"
        elif each.how == "only_in_edited":
            yield f"{each.name} is in EDITED only; a patch holds weights only"
    if unread := pair.unread:
        yield (
            f"{len(unread)} stored tensors are not read by {pair.base.names.architecture}, such as {unread[0]}; they "
            "were not compared"
        )
