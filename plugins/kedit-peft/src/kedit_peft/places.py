"""Which changes a LoRA adapter can say: those of the weights of Linear and Conv1D layers."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from kedit_core.errors import InputError
from kedit_core.models import Layout
from kedit_core.patches import EditPatch, ModuleOperation, Operation, Replace, RouterOperation
from kedit_core.patches.manifest import BaseTensor
from kedit_core.patches.operations import Delta, out_in_shape

_MERGED = "write a merged folder with `kedit patch apply` instead"
_LIVE = "apply the patch with kedit instead"
# leaves of the dotted names of embeddings in transformers; a manifest does not tell them from projections
_EMBEDDINGS = frozenset({"wte", "wpe", "shared", "relative_attention_bias"})
_HEADS = frozenset({"embed_out"})


@frozen(kw_only=True)
class ChangedWeight:
    """A weight and all that patches add to it.

    Attributes:
        place: the parameter's dotted name.
        module: that of the layer it belongs to.
        layout: ``out_in`` or ``in_out``, as the base stores it.
        shape: ``(out, in)``.
        deltas: in stack order, ``[out, in]`` each.
    """

    place: str
    module: str
    layout: Layout
    shape: tuple[int, int]
    deltas: tuple[Delta, ...]


def changed_weights(patches: Sequence[EditPatch]) -> tuple[ChangedWeight, ...]:
    """What patches of one base change, by weight, in the order in which they come to it.

    Raises:
        InputError: an operation that no LoRA adapter can say; the message names the place and the reason.
    """
    deltas: dict[str, list[Delta]] = {}
    described: dict[str, BaseTensor] = {}
    for patch in patches:
        for operation in patch.operations:
            delta = _delta(operation)
            described[delta.place] = patch.base.tensors[delta.place]
            if (reason := _unfit(delta.place, described[delta.place])) is not None:
                raise InputError(f"a LoRA adapter cannot say the change of {delta.place!r}: {reason}; {_MERGED}")
            deltas.setdefault(delta.place, []).append(delta)
    found = []
    for place, changes in deltas.items():
        out, inner = out_in_shape(described[place].shape, described[place].layout)
        found.append(
            ChangedWeight(
                place=place,
                module=place.removesuffix(".weight"),
                layout=described[place].layout,
                shape=(out, inner),
                deltas=tuple(changes),
            )
        )
    return tuple(found)


def _delta(operation: Operation) -> Delta:
    if isinstance(operation, ModuleOperation):
        raise InputError(
            f"a LoRA adapter cannot say {operation.kind} at {operation.places[0]!r}, which runs code of its own beside "
            f"the weights; {_LIVE}"
        )
    if isinstance(operation, RouterOperation):
        raise InputError(
            f"a LoRA adapter cannot say {operation.kind}, which reads each prompt before the model does; {_LIVE}"
        )
    if isinstance(operation, Replace):
        raise InputError(
            f"a LoRA adapter cannot say the replace of {operation.place!r}, which puts other values in the place of "
            f"the base's and adds nothing to them; {_MERGED}"
        )
    return operation


def _unfit(place: str, described: BaseTensor) -> str | None:
    """Why no LoRA layer stands at a parameter, or None."""
    module, _, name = place.rpartition(".")
    leaf = module.rpartition(".")[2]
    if described.aliases:
        return f"it is tied to {described.aliases[0]!r}, and an adapter would change only one of the two"
    if len(described.shape) > 2:
        return "it holds fused experts, for which servers have no common form of adapter"
    if len(described.shape) < 2:
        return "it is a bias or the weight of a norm, and adapters have matrices only"
    if described.layout == "as_stored" or name != "weight" or not module:
        return "its layer is no Linear and no Conv1D"
    if leaf in _EMBEDDINGS or ("embed" in leaf and leaf not in _HEADS):
        return "it is an embedding, for which servers take no adapter"
    return None
