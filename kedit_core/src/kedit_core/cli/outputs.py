"""Files that commands write: told apart from what they read, and known to be writable, before any work is done."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from kedit_core.errors import InputError, KeditError

STDOUT = "-"

_OURS = "kedit"  # what the metadata keys of our safetensors files begin with
_NAMES_A_FILE = ("FILE", "FOLDER", "MODEL", "PATCH", "PATH")  # in the metavar of a parameter that is given as text
_STACKS = ("MODEL", "STACK")  # parameters whose file may be a stack's
_READ_BELOW: Mapping[str, tuple[str, ...]] = {"corpus": (".txt", ".jsonl")}  # of a folder, at any depth
_LONGEST_HEADER = 100_000_000  # bytes; safetensors' own bound


class OutputPath(click.Path):
    """The type of an option that says where a result goes; :func:`refuse_overlaps` knows outputs by it."""


def refuse_overlaps(context: click.Context) -> None:
    """Refuse a command whose output would replace one of its inputs, or its other output.

    Inputs are all other parameters that name a file or a folder that is there. A file of such a folder counts too,
    unless it is a patch or statistics file (these may be kept beside a model).

    Raises InputError naming both parameters.
    """
    written: list[tuple[str, Path]] = []
    given: list[tuple[click.Parameter, Path]] = []
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if isinstance(parameter.type, OutputPath):
            written += [] if value in (None, STDOUT) else [(_label(parameter), Path(value))]
        else:
            given += [(parameter, path) for path in _paths(parameter, value)]
    for number, (option, output) in enumerate(written):
        for other, path in written[:number]:
            if _same(output, path):
                raise InputError(f"{option} and {other} are both {output}; give each a file of its own")
        for parameter, path in given:
            if _same(output, path):
                raise InputError(
                    f"{option} {output} is what {_label(parameter)} names, and would be replaced; give another name"
                )
            if _is_read_from(output, path, parameter):
                raise InputError(
                    f"{option} {output} is a file of the folder that {_label(parameter)} names, and would be replaced; "
                    "give another name"
                )


def check_file(option: str, path: Path, example: str | None = None) -> None:
    """Refuse a place where no file can be written (InputError naming the option). A file is made there and removed.

    Args:
        example: a file's name to suggest where ``path`` is a folder.
    """
    try:
        if path.is_dir():
            such = f", such as {path / example}" if example else ""
            raise InputError(f"{option} {path} is a folder; give the name of a file{such}")
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            return  # a device or a pipe; looking into it could block
        check_folder(option, path, target.parent)
    except OSError as error:
        raise InputError(f"{option} {path} cannot be written ({error.strerror or error}); give another name") from error


def check_folder(option: str, path: Path, folder: Path) -> None:
    """Refuse a folder that is not there or cannot be written into, for an ``option`` that asks for ``path``.

    Raises InputError.
    """
    if not folder.is_dir():
        raise InputError(f"{option} {path}: the folder {folder} does not exist; make it first")
    try:
        # tried, since the permissions that are shown are not all that decides
        with tempfile.NamedTemporaryFile(prefix=".kedit-", dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"{option} {path}: nothing can be written to the folder {folder} ({error.strerror or error}); give another"
        ) from error


def check_replaceable(option: str, path: Path, mark: str, kind: str) -> None:
    """Refuse to replace a file that is no ``kind`` of ours (InputError); an empty one holds nothing to lose."""
    if not replaceable(path, mark):
        raise InputError(
            f"{option} {path} is there already and is no {kind}, so it is not replaced; give another name, or remove it"
        )


def replaceable(path: Path, mark: str) -> bool:
    """Whether ``path`` is free, empty, no ordinary file, or a safetensors file with ``mark`` in its metadata."""
    return not path.is_file() or path.stat().st_size == 0 or mark in _metadata(path)


@contextmanager
def drawing(picture: Path) -> Iterator[None]:
    """A block that writes a picture of a result that has been shown already; InputError when it cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"--plot {picture} could not be written ({error.strerror or error}); the result itself is whole, so only "
            "the picture is missing"
        ) from error


def _label(parameter: click.Parameter) -> str:
    """What users call a parameter: ``-o``, ``--requests``, ``MODEL``."""
    if isinstance(parameter, click.Option):
        return parameter.opts[0]
    return (parameter.metavar or parameter.human_readable_name).split()[0]


def _paths(parameter: click.Parameter, value: Any) -> list[Path]:
    """The files and folders that are there among the values of a parameter."""
    values = value if isinstance(value, tuple) else (value,)
    shown = (parameter.metavar or parameter.human_readable_name).upper()
    found = [each for each in values if isinstance(each, Path)]
    if any(word in shown for word in _NAMES_A_FILE):
        texts = [each for each in values if isinstance(each, str)]
        found += [Path(text.partition("=")[2] if shown == "ROLE=PATH" else text) for text in texts]
        # a copy of a dataset, NAME:PATH
        found += [Path(text.partition(":")[2]) for text in texts if parameter.name == "source" and ":" in text]
    there = [path for path in found if _there(path)]
    return there + [path for each in there if shown in _STACKS for path in _stacked(each)]


def _stacked(path: Path) -> list[Path]:
    """The patch files that a stack file names; none for any other file, and none where it cannot be read."""
    from kedit_core.stacks.file import StackFile, is_stack_file

    if not is_stack_file(path):
        return []
    with suppress(KeditError):  # whoever reads it says what is wrong with it
        stack = StackFile.load(path)
        return [stack.path(each) for each in stack.patches]
    return []


def _same(output: Path, path: Path) -> bool:
    """Whether two names are of one file; devices and pipes are not replaced, and folders are written into."""
    if not _there(output) or not _there(path):
        return os.path.realpath(output) == os.path.realpath(path)
    return output.is_file() and output.samefile(path)


def _there(path: Path) -> bool:
    """Whether there is such a file or folder; False also for what can be no name of one."""
    try:
        return path.exists()
    except OSError:
        return False


def _is_read_from(output: Path, folder: Path, parameter: click.Parameter) -> bool:
    """Whether ``output`` is a file that is read with ``folder``."""
    if not _there(output) or not output.is_file() or not folder.is_dir():
        return False
    target, real = Path(os.path.realpath(output)), Path(os.path.realpath(folder))
    if (endings := _READ_BELOW.get(parameter.name or "")) is not None:
        return real in target.parents and target.suffix in endings
    return target.parent == real and not any(key.startswith(_OURS) for key in _metadata(target))


def _metadata(path: Path) -> frozenset[str]:
    """The metadata keys of a safetensors file; none for any other file."""
    try:
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size)) if size <= _LONGEST_HEADER else None
    except (OSError, ValueError, RecursionError):
        return frozenset()
    found = header.get("__metadata__") if isinstance(header, dict) else None
    return frozenset(found) if isinstance(found, dict) else frozenset()
