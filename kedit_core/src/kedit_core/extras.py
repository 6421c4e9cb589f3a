"""Libraries that only some features need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from kedit_core.errors import MissingExtraError


def needed(module: str, what: str, install: str) -> Any:
    """The module, imported now.

    Args:
        module: dotted name, ``matplotlib.pyplot`` say.
        what: what of ours needs it, as the beginning of a sentence.
        install: what to give to pip, ``kedit-core[plot]`` say.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise MissingExtraError(
            f"{what} needs {library}, which cannot be imported ({error}); pip install '{install}'"
        ) from error
