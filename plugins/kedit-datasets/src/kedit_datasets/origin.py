"""Where requests come from, in the requests themselves: which files, read how, and which part of them.

It lies in ``meta["origin"]``, so that it goes wherever requests go (and into the digest of a run's requests).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import evolve

from kedit_core.requests import EditRequest
from kedit_datasets.records import Report

ORIGIN = "origin"


def with_origin(requests: Iterable[EditRequest], report: Report, options: Mapping[str, Any]) -> list[EditRequest]:
    """The requests, each with ``meta["origin"]``.

    Its ``files`` are name and ``sha256`` of every file that was read, its ``options`` those that were given (``split``,
    ``size``, ``seed``, ...); of paths the name alone, since where a file lies says nothing about what it holds.
    """
    files = sorted(report.files.items(), key=lambda file: (Path(file[0]).name, file[1]))
    origin = {
        "files": [{"name": Path(name).name, "sha256": digest} for name, digest in files],
        "options": {name: _plain(value) for name, value in sorted(options.items()) if value is not None},
    }
    return [evolve(request, meta={**request.meta, ORIGIN: origin}) for request in requests]


def _plain(value: Any) -> Any:
    # Path raises where a text is too long for a file
    if isinstance(value, Path) or (isinstance(value, str) and os.path.exists(value)):  # noqa: PTH110
        return Path(value).name
    return value
