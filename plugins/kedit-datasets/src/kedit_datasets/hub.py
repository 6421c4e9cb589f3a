"""Files of datasets on the Hugging Face Hub.

The file is taken as it was published, not through ``datasets.load_dataset``: that casts all records to one schema,
which fills absent fields with nulls, refuses fields that are text here and a list there, and leaves no file to hash.
"""

from __future__ import annotations

from pathlib import Path

from kedit_core.errors import InputError
from kedit_core.extras import needed


def fetch(name: str, repository: str, filename: str) -> Path:
    """A local copy of one file of a dataset repository, from the Hub's cache where it is there already.

    Args:
        name: of the dataset, for messages.
        repository: ``owner/name`` of a dataset repository.
        filename: path inside it; ``*`` stands for what must be unique.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        InputError: it cannot be had (no network, no such repository), or there is no such file, or more than one.
    """
    hub = needed("huggingface_hub", "fetching a dataset", "kedit-datasets[hub]")
    instead = f"get a copy elsewhere and give it as {name}:PATH"
    try:
        folder = Path(hub.snapshot_download(repository, repo_type="dataset", allow_patterns=[filename]))
    except Exception as error:  # the hub client has many kinds of errors; the user needs one sentence
        raise InputError(
            f"dataset {name!r} could not be had from the Hugging Face Hub's {repository} ({type(error).__name__}); "
            f"check the network, or {instead}"
        ) from error
    found = sorted(path for path in folder.glob(filename) if path.is_file())
    if len(found) != 1:
        told = f"{len(found)} files" if found else "no file"
        raise InputError(f"dataset {name!r}: the Hugging Face Hub's {repository} has {told} {filename}; {instead}")
    return found[0]
