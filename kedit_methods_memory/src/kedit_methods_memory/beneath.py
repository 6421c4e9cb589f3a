"""The model as it is beneath a method's own last patch: what the next round of an extending method reads and trains on.

During ``compute_patch`` the patch of the round before is still on the model. Patches of others, below or above, count
as the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kedit_core.editing import EditContext
from kedit_core.editing.facts import facts_of, request_of
from kedit_core.forward import ForwardTools
from kedit_core.patches import EditPatch, ModuleKind
from kedit_core.requests import EditRequest


class Quietable(ModuleKind):
    """A kind of module operation that can be told to change nothing for a while: its hooks return at once."""

    quiet: bool = False


@contextmanager
def beneath(context: EditContext) -> Iterator[ForwardTools]:
    """Tools for the model without the operations of ``context.previous``, for the length of a block.

    Where no other module operation is on the model, the tools are told of no scope: nothing decides prompt by prompt,
    so their fast paths are open.
    """
    previous = context.previous
    own = [
        kind
        for entry in context.stack.patches
        if previous is not None and entry.patch.id == previous.id
        for kind in entry.kinds
        if isinstance(kind, Quietable)
    ]
    alone = len(own) == sum(len(entry.kinds) for entry in context.stack.patches)
    tools = context.forward
    if own and alone:
        tools = ForwardTools(
            tools.model, tools.view, tools.boundary, fast=tools.fast, memory_budget=tools.memory_budget
        )
    before = [kind.quiet for kind in own]
    try:
        for kind in own:
            kind.quiet = True
        yield tools
    finally:
        for kind, quiet in zip(own, before, strict=True):
            kind.quiet = quiet


def requests_of(patch: EditPatch | None) -> tuple[EditRequest, ...]:
    """The facts in a patch, without probes; none for None. Raises InputError when they are private."""
    return () if patch is None else tuple(map(request_of, facts_of(patch)))
