"""Progress that a caller may show or silence; the core itself is silent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Step(Protocol):
    """A running piece of long work."""

    def advance(self, amount: float = 1) -> None:
        """Some of it is done."""

    def describe(self, text: str) -> None:
        """Say what is being done now."""


class Progress(Protocol):
    """Called as ``progress("text", total=n)``; gives a context manager for one piece of work."""

    def __call__(self, description: str, total: float | None = None) -> AbstractContextManager[Step]:
        """Begin a piece of work."""


class _Silent:
    def advance(self, amount: float = 1) -> None:
        pass

    def describe(self, text: str) -> None:
        pass


@contextmanager
def silent(description: str, total: float | None = None) -> Iterator[Step]:
    """No progress at all: the default of the Python API."""
    yield _Silent()
