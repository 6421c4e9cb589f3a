"""What a patch notes of its facts, and how it goes on from round to round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kedit_core.editing import EditContext
from kedit_core.editing.facts import facts_of
from kedit_core.errors import InputError, PatchFormatError
from kedit_core.patches import EditPatch, ModuleOperation
from kedit_methods_memory.fields import mapping, typed
from kedit_methods_memory.t_patcher.neurons import KIND, Neurons
from kedit_methods_memory.t_patcher.training import Example, Trained


def record_of(example: Example, trained: Trained, right: bool, spread: float) -> dict[str, Any]:
    """One fact's entry in the patch's state: JSON-able, and nothing that another run would not measure again."""
    return {
        "neurons": len(example.wrong),
        "positions": list(example.wrong),
        "epochs": trained.epochs,
        "right": right,
        "loss": trained.loss,
        "memory_loss": trained.memory_loss,
        "fires_on": spread,
    }


def carried(context: EditContext, activation: str) -> tuple[list[Neurons], list[dict[str, Any]]]:
    """Neurons and records of the rounds before, to go on from; what these rounds stood on is noted again.

    Raises InputError when their neurons have another activation.
    """
    previous = context.previous
    if previous is None:
        return [], []
    resources = previous.state.config.get("resources", {})
    if not isinstance(resources, Mapping) or not all(isinstance(each, str) for each in resources.values()):
        raise PatchFormatError(f"patch {previous.id[:12]} names resources that are none; it was not made by kedit")
    for role, digest in resources.items():
        context.note_resource(role, digest)
    held = [Neurons.of(operation) for operation in operations_in(previous)]
    if any(each.activation != activation for each in held):
        raise InputError("the patch to go on from has neurons of another activation; begin with an unpatched model")
    return held, records_of(previous)


def records_of(patch: EditPatch) -> list[dict[str, Any]]:
    """What is noted of each fact of a patch. Raises PatchFormatError when that does not fit its neurons."""
    count = sum(len(Neurons.of(operation).bias) for operation in operations_in(patch))
    try:
        records = [dict(mapping(record, "a record")) for record in typed(patch.state.config, "edits", list, tuple)]
        numbers = [typed(record, "neurons", int) for record in records]
    except (KeyError, TypeError) as error:
        raise PatchFormatError(
            f"patch {patch.id[:12]} does not say what was done for each fact ({error}); it was not made by this method"
        ) from error
    if len(records) != len(facts_of(patch)) or min(numbers, default=0) < 0 or sum(numbers) != count:
        raise PatchFormatError(
            f"patch {patch.id[:12]} does not say which of its {count} neurons belong to which fact; it was not made by "
            "this method"
        )
    return records


def joined(held: Sequence[Neurons]) -> Neurons:
    """Neurons of several edits as one, in order, where patches keep them."""
    each = [neurons.to(torch.device("cpu")) for neurons in held]
    return Neurons(
        torch.cat([neurons.keys for neurons in each]),
        torch.cat([neurons.bias for neurons in each]),
        torch.cat([neurons.values for neurons in each]),
        each[0].activation,
    )


def operations_in(patch: EditPatch) -> list[ModuleOperation]:
    """The operations that hold neurons: one, or none."""
    return [each for each in patch.operations if isinstance(each, ModuleOperation) and each.kind == KIND]
