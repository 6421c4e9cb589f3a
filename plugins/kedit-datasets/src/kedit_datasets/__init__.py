"""The field's datasets for kedit, and their metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kedit_core.errors import UnknownNameError

__all__ = ["load"]


def load(name: str, path: str | Path | None = None, **options: Any) -> Any:
    """The requests of a dataset (``zsre``, ``counterfact``, ...) as a :class:`~kedit_datasets.records.Loaded`.

    Args:
        path: a local copy; without it the Hugging Face Hub is asked, where the dataset is there.
        options: ``size`` and ``seed`` for a part of it, and the dataset's own (`kedit datasets` lists them).

    Raises:
        UnknownNameError: no such dataset.
        InputError, RequestError: it cannot be had, or what is wrong in it, record by record.
    """
    from kedit_datasets.catalogue import DATASETS, read

    for entry in DATASETS:
        if entry.name == name:
            return read(entry, None if path is None else Path(path), **options)
    raise UnknownNameError(f"there is no dataset {name!r}; there are {', '.join(entry.name for entry in DATASETS)}")
