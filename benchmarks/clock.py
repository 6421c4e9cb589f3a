"""Where time goes: seconds of labelled parts, each without the parts inside of it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch


class Clock:
    """Seconds spent in each labelled part, not counting the labelled parts inside of it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, label: str) -> Iterator[None]:
        """Everything inside counts as ``label``, until another part begins."""
        self._book()
        self._open.append(label)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    def _book(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def around(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted as ``label``."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(label):
                return function(*args, **kwargs)

        return timed

    @contextmanager
    def watching(self, parts: Sequence[tuple[Any, str, str]]) -> Iterator[None]:
        """Functions (owner, name, label) counted while the block runs."""
        with ExitStack() as stack:
            for owner, name, label in parts:
                stack.enter_context(patch.object(owner, name, self.around(label, getattr(owner, name))))
            yield
