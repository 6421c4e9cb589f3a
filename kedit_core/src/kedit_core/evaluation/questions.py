"""What is asked of a model, and what is found: plain data."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeAlias

from attrs import field, frozen

Read: TypeAlias = Callable[[list[Any]], Sequence[Any]]


@frozen(kw_only=True)
class TargetTokens:
    """The argmax at each position of a target that was fed, and the target's own tokens; as many of each.

    ``text`` is what the predicted tokens spell.
    """

    predicted: tuple[int, ...]
    target: tuple[int, ...]
    text: str


@frozen(kw_only=True)
class Continuation:
    """What was written after a prompt: the text as it follows it, and its tokens, the one that ends it left out."""

    text: str
    tokens: tuple[int, ...]


@frozen(eq=False)
class Questions:
    """What was asked while :meth:`Answers.noting`: kind -> how it is read, and what of it, each once."""

    kinds: dict[Hashable, tuple[Read, dict[Hashable, None]]] = field(factory=dict)

    def note(self, kind: Hashable, read: Read, items: Iterable[Hashable]) -> None:
        """Add questions of one kind."""
        self.kinds.setdefault(kind, (read, {}))[1].update(dict.fromkeys(items))
