"""Requests by the name of what they are in: a file in kedit's own format, a registered dataset, or a copy of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kedit_core.contract import DatasetInfo
from kedit_core.errors import InputError, UnknownNameError
from kedit_core.plugins import Host
from kedit_core.requests import EditRequest, load_requests


def open_requests(
    source: str, host: Host, *, options: Mapping[str, Any] | None = None, needs_subject: bool = False
) -> list[EditRequest]:
    """Requests of ``FILE``, of the registered dataset ``NAME``, or of a copy of it in its own format, ``NAME:PATH``.

    Args:
        options: for the dataset's reader (``split``, ``size``, ...); what it does not know is refused.
        needs_subject: for a file of ours, whether every request must name a subject (see ``MethodInfo``).

    Raises:
        UnknownNameError: neither a file nor a dataset.
        InputError: no such file, options that the dataset does not have, or a dataset without requests.
        RequestError: what is wrong in the file, or in the copy.
    """
    given = dict(options or {})
    info, path = _dataset(source, host)
    if info is None:
        if given:
            raise InputError(
                f"{source} is a file of requests, which takes no options ({', '.join(given)}); leave them out"
            )
        return load_requests(Path(source), needs_subject=needs_subject)
    if unknown := [name for name in given if name not in info.options]:
        known = f"it has {', '.join(info.options)}" if info.options else "it has none"
        raise InputError(f"dataset {info.name!r} has no option {unknown[0]!r}; {known}")
    if path is None and info.requests is not None and not given:
        return list(info.requests())
    if info.read is None:
        raise InputError(f"dataset {info.name!r} has no edit requests to read; give a file of them")
    return list(info.read(path, **given))


def dataset_of(source: str, host: Host) -> DatasetInfo | None:
    """The registered dataset that a source names, or None for a file. Raises as :func:`open_requests`."""
    return _dataset(source, host)[0]


def _dataset(source: str, host: Host) -> tuple[DatasetInfo | None, Path | None]:
    if Path(source).is_file():
        return None, None
    name, colon, rest = source.partition(":")
    if colon and rest and any(info.name == name for info in host.datasets()):
        path = Path(rest)
        if not path.exists():
            raise InputError(
                f"there is no file or folder {rest}, where dataset {name!r} was to be read; check the path"
            )
        return host.dataset(name), path
    if Path(source).suffix and not colon:
        raise InputError(f"there is no file {source}; check the path")
    try:
        return host.dataset(source), None
    except UnknownNameError as error:
        readers = [info.name for info in host.datasets() if info.read is not None]
        hint = f"; a copy of a dataset is given as NAME:PATH, with NAME one of {', '.join(readers)}" if readers else ""
        raise UnknownNameError(f"{error}{hint}") from error


def parse_options(given: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` texts as options: numbers, true, false and null are read as such, anything else as text.

    Raises InputError for one that is not of that form.
    """
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"the dataset option {text} is not KEY=VALUE; write for example size=100")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    if text in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
