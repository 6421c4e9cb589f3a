"""Operations that are on a model only for the length of a block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kedit_core.contract import Way
from kedit_core.errors import StackOrderError
from kedit_core.patches.entries import Entry
from kedit_core.patches.operations import Operation

if TYPE_CHECKING:
    from kedit_core.patches.stack import PatchStack


class ProvisionalWriter:
    """Puts operations on top of a stack for the length of a block; see :meth:`PatchStack.provisional`."""

    def __init__(self, stack: PatchStack) -> None:
        self._stack = stack
        self._entries: list[Entry] = []
        self._open = True

    def add(self, operations: Sequence[Operation], way: Way | None = None) -> None:
        """Put operations on, in order; the base is not compared with anything.

        Raises InputError, BaseMismatchError (shapes), StackDisturbedError, StackOrderError (the block has ended).
        """
        if not self._open:
            raise StackOrderError("this provisional block has ended; open another one")
        stack = self._stack
        stack._ready()
        kinds = ", ".join(operation.type for operation in operations)
        with stack._ranks().agree(f"add {kinds} provisionally (way {way})"):
            entry = stack._entry(None, tuple(operations), way, {}, True)
        stack._change((*stack._entries, entry), provisional=True)
        self._entries.append(entry)

    def close(self) -> None:
        """Take everything off that was added; what was put on otherwise stays."""
        self._open = False
        stack = self._stack
        if any(entry in self._entries for entry in stack._entries):
            stack._ready()
            stack._change(tuple(entry for entry in stack._entries if entry not in self._entries))
