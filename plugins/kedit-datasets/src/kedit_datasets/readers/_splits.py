"""Which file of a dataset is meant."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kedit_core.errors import InputError
from kedit_datasets.records import file_of


def split_file(path: Path, split: str | None, published: Mapping[str, str]) -> Path:
    """The file itself, or in a folder the one published for a split.

    Args:
        split: None is the first of the published ones, where there is a choice.
        published: split -> name of its file.

    Raises:
        InputError: no such split; a folder without its file; a file that is published as another split.
    """
    if split is not None and split not in published:
        raise InputError(f"there is no split {split!r}; there are {', '.join(published)}")
    if path.is_dir():
        return file_of(path, split or next(iter(published)), {name: (file,) for name, file in published.items()})
    other = next((name for name, file in published.items() if file == path.name), split)
    if split is not None and other != split:
        raise InputError(f"{path} is the split {other}, not {split}; give {published[split]}, or leave the split out")
    return path
