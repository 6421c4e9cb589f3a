"""What an Editor has read of the base under its patches, for as long as nobody writes to that base."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from kedit_core.evaluation import Answers
from kedit_core.patches import PatchStack

_HASHED_BYTES = 1 << 30  # about a second of hashing
_DIGEST = "kedit-core.base-digest"


class BaseReading:
    """Answers of the base, its digest, and what methods remember of it (``context.remember``).

    Attributes:
        answers: reads under ``stack.suspended()``.
        memo: what methods keep.
    """

    def __init__(self, stack: PatchStack, answers: Answers) -> None:
        self.answers = answers
        self.memo: dict[Any, Any] = {}
        self._stack = stack
        self._mark: Hashable = None

    def follow(self) -> None:
        """Forget everything when somebody has written to the base or moved it since it was read."""
        now = self._stack.base_mark()
        if now != self._mark:
            self._mark = now
            self.memo.clear()
            self.answers.forget()

    def digest(self) -> str | None:
        """SHA-256 of the base's weights, read once; None for models whose hashing would take long."""
        if _DIGEST not in self.memo:
            size = sum(parameter.numel() * parameter.element_size() for parameter in self._stack.model.parameters())
            with self._stack.suspended():
                self.memo[_DIGEST] = self._stack.weights_digest() if size <= _HASHED_BYTES else None
        found: str | None = self.memo[_DIGEST]
        return found
