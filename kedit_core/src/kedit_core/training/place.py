"""Where a training writes: which folders it may take, and what is found there."""

from __future__ import annotations

from pathlib import Path

from kedit_core.errors import InputError
from kedit_core.training.folder import check_place
from kedit_core.training.store import Store


def check_output(folder: Path, *, resume: bool, anew: bool) -> None:
    """Refuse a folder where something else stands, where a training would be lost, or without one to resume.

    A training that is finished is not lost when its editor was written. Raises InputError.
    """
    check_place(folder)
    store = Store(beside(folder))
    standing = store.standing()
    if resume and standing is None:
        raise InputError(f"{store.folder} holds no training to resume; leave resume out to start one")
    if standing is None or resume or anew or (standing.get("finished") and store.written):
        return
    number = standing["counters"]["iteration"]
    if standing.get("finished"):
        raise InputError(
            f"{store.folder} holds a training of {number} iterations whose editor was never written; write it "
            "(--resume), or start over (--anew)"
        )
    raise InputError(
        f"{store.folder} holds a training that was interrupted at iteration {number}; go on with it (--resume), or "
        "start over (--anew)"
    )


def checkpoint_of(folder: Path) -> str | None:
    """Which iteration a training that was stopped can be resumed from, in words; None where there is no checkpoint."""
    store = Store(beside(folder))
    standing = store.standing()
    if standing is None or store.written:
        return None
    return f"the checkpoint of iteration {standing['counters']['iteration']} in {store.folder}"


def beside(folder: Path) -> Path:
    """Where an editor's checkpoints and measurements are."""
    return folder.with_name(f"{folder.name}.training")
