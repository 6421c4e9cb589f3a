"""What the package ships: the models' folders, the edit cases, the statistics."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from kedit_core.errors import InputError, UnknownNameError

PREFIX = "factworld:"
MODELS = ("gpt2", "llama")
READERS = ("gpt2-reader", "llama-reader")
"""The same, trained further until they take an answer from their context when it has one."""
STATISTICS = "statistics"


def data_folder() -> Path:
    """The folder of the package's data. Raises InputError when the package is not installed as plain files."""
    folder = Path(str(files("kedit_factworld"))) / "data"
    if not folder.is_dir():
        raise InputError(
            f"the data of kedit-factworld is not at {folder}; install the distribution as files, not as a zip archive"
        )
    return folder


def model_folder(name: str) -> Path:
    """The Hugging Face folder of a registered name such as ``factworld:llama``; raises UnknownNameError."""
    kind = name.removeprefix(PREFIX)
    if kind not in MODELS + READERS:
        known = ", ".join(PREFIX + kind for kind in MODELS + READERS)
        raise UnknownNameError(f"there is no model {name!r} in kedit-factworld; it has {known}")
    return data_folder() / "models" / kind


def cases_file() -> Path:
    """The edit cases, one JSON object a line."""
    return data_folder() / "edits.jsonl"


def demonstrations_file() -> Path:
    """Edits of other facts, to be shown in context; one JSON object a line."""
    return data_folder() / "demonstrations.jsonl"


def statistics_file(key: str) -> Path | None:
    """The shipped statistics under a content key, or None."""
    if not re.fullmatch(r"[\w.-]+", key):
        return None
    path = data_folder() / STATISTICS / f"{key}.safetensors"
    return path if path.is_file() else None
