"""Taking a fact out of a patch: the edit is made again without it, which takes one pass."""

from __future__ import annotations

from kedit_core.editing import EditContext
from kedit_core.errors import InputError
from kedit_core.patches import EditPatch
from kedit_core.requests import EditRequest


def remaining(context: EditContext, patch: EditPatch, request_id: str) -> list[EditRequest]:
    """The requests of a patch without those of this id.

    Raises InputError for a patch of several rounds.
    """
    if len(patch.states()) > 1:
        raise InputError(
            f"the patch {patch.id[:12]} was made in {len(patch.states())} rounds, each computed on those before, so a "
            "fact cannot be taken out of the middle; edit the others again, or keep one patch for each round"
        )
    return [request for request in context.requests if request.id != request_id]
