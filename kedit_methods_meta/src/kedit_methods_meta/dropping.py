"""Taking a fact out of a patch: the edit is made again without it, which takes one pass."""

from __future__ import annotations

from collections.abc import Mapping

from kedit_core.editing import EditContext
from kedit_core.editing.facts import facts_of, request_of
from kedit_core.errors import InputError
from kedit_core.patches import EditPatch
from kedit_core.requests import EditRequest
from kedit_core.training import EditorFolder
from kedit_methods_meta.saved_editor import ROLE


def remaining(context: EditContext, patch: EditPatch, request_id: str) -> list[EditRequest]:
    """The requests of a patch without those of this id.

    Of the context's: a case of several requests is dropped one by one, and the patch then holds fewer each time.

    Raises InputError for a patch of several rounds, whose requests are private, or that another editor made.
    """
    if len(patch.states()) > 1:
        raise InputError(
            f"the patch {patch.id[:12]} was made in {len(patch.states())} rounds, each computed on those before, so a "
            "fact cannot be taken out of the middle; edit the others again, or keep one patch for each round"
        )
    used = patch.state.config.get("resources")
    if not isinstance(used, Mapping) or used.get(ROLE) != EditorFolder.load(context, ROLE).digest:
        raise InputError(
            f"the patch {patch.id[:12]} was made with another editor, and this one would make other edits of its "
            "facts; give the editor that it was made with"
        )
    held = {request_of(fact).id for fact in facts_of(patch)} - {request_id}
    return [request for request in context.requests if request.id in held]
