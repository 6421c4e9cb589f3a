"""What a batch edit leaves in its patch beside the weights, and what later work reads from it.

The contexts and targets are enough to write the facts again without searching (``kedit patch drop``); the keys are what
later edits of the same method must leave in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen
from torch import Tensor

from kedit_core.contract import MethodInfo
from kedit_core.editing import EditContext
from kedit_core.errors import InputError
from kedit_core.patches import EditPatch, PrivateRequests
from kedit_core.requests import EditRequest
from kedit_methods_locate.hparams.spread import Projection
from kedit_methods_locate.spreading import key_name

_TARGETS = "targets."


@frozen(eq=False)
class Stored:
    """A batch edit as its patch has it.

    Attributes:
        requests: the facts, with spans and without probes.
        templates: contexts, bare first.
        targets: name of what is moved -> ``[n, hidden]``.
        edits: one JSON record for each fact.
    """

    requests: tuple[EditRequest, ...]
    templates: tuple[str, ...]
    targets: Mapping[str, Tensor]
    edits: tuple[Mapping[str, Any], ...]

    def without(self, request_id: str) -> Stored:
        """The same edit without the fact of this id. Raises InputError when there is none, or no other is left."""
        kept = [i for i, request in enumerate(self.requests) if request.id != request_id]
        if len(kept) == len(self.requests):
            raise InputError(f"the patch has no fact of the id {request_id!r}; ask for one of those it was made for")
        if not kept:
            raise InputError("the patch has no other fact; take the whole patch off instead")
        return Stored(
            tuple(self.requests[i] for i in kept),
            self.templates,
            {name: rows[kept] for name, rows in self.targets.items()},
            tuple(self.edits[i] for i in kept),
        )


def target_tensors(targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Targets under the names that a patch's state has them by."""
    return {f"{_TARGETS}{name}": rows for name, rows in targets.items()}


def stored(patch: EditPatch) -> Stored:
    """Read a batch edit back. Raises InputError for a patch that does not hold all of it, saying why."""
    what = f"the patch {patch.id[:12]}"
    if isinstance(patch.requests, PrivateRequests):
        raise InputError(f"the facts of {what} are kept private, so none of them can be told apart")
    if len(patch.states()) > 1:
        raise InputError(
            f"{what} was made in {len(patch.states())} rounds, each computed on those before, so a fact cannot be "
            "taken out of the middle; edit the others again, or keep one patch for each round"
        )
    state = patch.state
    targets = {name.removeprefix(_TARGETS): rows for name, rows in state.tensors.items() if name.startswith(_TARGETS)}
    templates, edits = state.config.get("context_templates"), state.config.get("edits")
    count = len(patch.requests)
    whole = isinstance(templates, list) and isinstance(edits, list) and len(edits) == count
    if not targets or not whole or any(len(rows) != count for rows in targets.values()):
        raise InputError(f"{what} does not hold the targets of its {count} facts; it was made by another version")
    requests = tuple(_request(fact) for fact in patch.requests)
    return Stored(requests, tuple(templates or ()), targets, tuple(edits or ()))


def _request(fact: Mapping[str, Any]) -> EditRequest:
    span = fact.get("subject_span")
    return EditRequest(
        prompt=fact["prompt"],
        subject=fact.get("subject"),
        subject_span=None if span is None else (int(span[0]), int(span[1])),
        target_new=fact["target_new"],
        ground_truth=fact.get("ground_truth"),
        case_id=fact.get("case_id"),
    )


def past_keys(context: EditContext, layer: int, projection: Projection) -> list[tuple[str, Tensor]]:
    """Keys that edits of this method now on the model must go on to give what they give: (an id, ``[n, in]``).

    In stack order. A patch that was taken off has no part in it, since the stack is asked and nothing is remembered.
    """
    found = []
    name = key_name(layer, projection)
    for entry in context.stack.patches:
        if _same_method(context.method, entry.patch):
            for number, state in enumerate(entry.patch.states()):
                if (keys := state.tensors.get(name)) is not None:
                    found.append((f"{entry.patch.id}.{number}", keys))
    return found


def _same_method(method: MethodInfo | None, patch: EditPatch) -> bool:
    return method is not None and patch.method.name == method.name
