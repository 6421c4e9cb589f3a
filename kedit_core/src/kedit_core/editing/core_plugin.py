"""The core's own implementations of the hooks that it shares with plugins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import evolve

from kedit_core.contract import Installed, Way, hookimpl
from kedit_core.errors import RequestError
from kedit_core.requests import EditRequest, find_subject

if TYPE_CHECKING:
    from kedit_core.editing.context import EditContext
    from kedit_core.patches import EditPatch


class CorePlugin:
    """Finds subjects, and puts patches on and takes them off through the stack."""

    @hookimpl(tryfirst=True)
    def prepare_requests(self, context: EditContext, requests: Sequence[EditRequest]) -> Sequence[EditRequest]:
        """Requests with the subject's span in place; all faults of all requests at once (RequestError)."""
        needs_subject = context.method is not None and context.method.needs_subject
        faults: list[str] = []
        prepared = []
        for number, request in enumerate(requests, start=1):
            where = f"request {number}" + (f" (case {request.case_id})" if request.case_id else "")
            faults += _text_faults(where, request)
            span = request.subject_span
            if span is None and request.subject is not None:
                span = find_subject(request.prompt, request.subject)
            if needs_subject and request.subject is None:
                faults.append(f"{where}: method {context.method.name!r} needs a subject; give the words the fact is about")
            elif needs_subject and span is None:
                faults.append(
                    f"{where}: the subject {request.subject!r} is not in the prompt {request.prompt!r} as a whole word; "
                    "correct one of them or give subject_span"
                )
            prepared.append(evolve(request, subject_span=span))
        if faults:
            raise RequestError("the edit", faults)
        return prepared

    @hookimpl(trylast=True)
    def apply_to_model(self, context: EditContext, patch: EditPatch, way: Way | None) -> Installed:
        """Put the patch on the stack of ``context.model``."""
        return context.stack.apply(
            patch,
            way=way,
            force=bool(context.options.get("force", False)),
            allow_unverified=bool(context.options.get("allow_unverified", False)),
            resources=context.resources,
        )

    @hookimpl(trylast=True)
    def restore(self, context: EditContext, patch: EditPatch) -> bool:
        """Take the patch off the stack."""
        context.stack.remove(patch)
        return True


def _text_faults(where: str, request: EditRequest) -> list[str]:
    faults = []
    if not request.prompt.strip():
        faults.append(f"{where}: the prompt is empty; give the text the model should complete")
    if not request.target_new.strip():
        faults.append(f"{where}: target_new is empty; give the new answer")
    if (span := request.subject_span) is not None and not 0 <= span[0] < span[1] <= len(request.prompt):
        faults.append(f"{where}: subject_span {list(span)} lies outside the prompt of {len(request.prompt)} characters")
    return faults
