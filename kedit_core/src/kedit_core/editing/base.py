"""What an Editor has read of the base under its patches, for as long as nobody writes to that base."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from kedit_core.editing.context import EditContext
from kedit_core.evaluation import Answers
from kedit_core.evaluation.kept_answers import KeptAnswers, base_key
from kedit_core.patches import PatchStack
from kedit_core.requests import EditRequest

_HASHED_BYTES = 1 << 30  # about a second of hashing
_DIGEST = "kedit-core.base-digest"


class BaseReading:
    """Answers of the base, its digest, and what methods remember of it (``context.remember``).

    Attributes:
        answers: reads under ``stack.suspended()``.
        memo: what methods keep.

    Args:
        keep_in: the cache folder where answers are kept between runs; None keeps them in memory only.
    """

    def __init__(self, stack: PatchStack, answers: Answers, keep_in: Path | None = None) -> None:
        self.answers = answers
        self.memo: dict[Any, Any] = {}
        self._keep_in = keep_in
        self._kept: KeptAnswers | None = None
        self._stack = stack
        self._mark: Hashable = None

    def follow(self) -> None:
        """Forget everything when somebody has written to the base or moved it since it was read."""
        now = self._stack.base_mark()
        if now != self._mark:
            self._mark = now
            self._kept = None
            self.memo.clear()
            self.answers.forget()

    def ahead(self, context: EditContext, requests: Sequence[EditRequest]) -> None:
        """Read all that an evaluation of these requests will ask of the base, or take it from where it is kept."""
        if self._keep_in is None:
            context.host.read_ahead(context, requests, self.answers)
            return
        if self._kept is None:
            with self._stack.suspended():
                key = base_key(context.model, context.tokenizer, self._stack.weights_digest())
            self._kept = KeptAnswers(self._keep_in, key)
        with self.answers.noting() as questions:
            context.host.read_ahead(context, requests, self.answers)
        self._kept.supply(self.answers, questions)

    def digest(self) -> str | None:
        """SHA-256 of the base's weights, read once; None for models whose hashing would take long."""
        if _DIGEST not in self.memo:
            size = sum(parameter.numel() * parameter.element_size() for parameter in self._stack.model.parameters())
            with self._stack.suspended():
                self.memo[_DIGEST] = self._stack.weights_digest() if size <= _HASHED_BYTES else None
        found: str | None = self.memo[_DIGEST]
        return found
