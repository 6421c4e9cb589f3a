"""The core's own implementations of the hooks that it shares with plugins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import evolve

from kedit_core.contract import Installed, Way, hookimpl
from kedit_core.requests import EditRequest, check_requests, subject_span

if TYPE_CHECKING:
    from kedit_core.editing.context import EditContext
    from kedit_core.patches import EditPatch


class CorePlugin:
    """Finds subjects, and puts patches on and takes them off through the stack."""

    @hookimpl(tryfirst=True)
    def prepare_requests(self, context: EditContext, requests: Sequence[EditRequest]) -> Sequence[EditRequest]:
        """Requests with the subject's span in place; raises RequestError with all faults of all requests."""
        check_requests(requests, needs_subject=context.method is not None and context.method.needs_subject)
        return [evolve(request, subject_span=subject_span(request)) for request in requests]

    @hookimpl(trylast=True)
    def apply_to_model(self, context: EditContext, patch: EditPatch, way: Way | None) -> Installed:
        """Put the patch on the stack of ``context.model``."""
        return context.stack.apply(
            patch,
            way=way,
            force=bool(context.options.get("force", False)),
            allow_unverified=bool(context.options.get("allow_unverified", False)),
            resources=context.resources,
            name=context.model_name,
        )

    @hookimpl(trylast=True)
    def restore(self, context: EditContext, patch: EditPatch) -> bool:
        """Take the patch off the stack."""
        context.stack.remove(patch)
        return True
