"""Rounds of an edit: compute, apply, and the rounds joined into one patch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeAlias

import torch

from kedit_core.contract import MethodInfo
from kedit_core.editing.context import EditContext, seeded
from kedit_core.editing.guard import left_as_found
from kedit_core.editing.scenarios import Round
from kedit_core.errors import MethodError, PluginError, UnsupportedModelError
from kedit_core.hparams import HyperParams
from kedit_core.models.storage import meshes, reshard, stops_gradients
from kedit_core.patches import EditPatch, PatchStack

OnPatch: TypeAlias = Callable[[EditPatch, Round], None]


def compute_round(context: EditContext, requests: Round) -> EditPatch:
    """One patch, computed and not applied, with the model checked to be as it was.

    Raises MethodError when the method changed the model, or made operations that it does not declare; PluginError when
    it returned something else than a patch.
    """
    method, hparams = _chosen(context)
    # an edit of prompts alone follows no gradient
    if method.operations != {"router"} and (blind := stops_gradients(context.model)) is not None:
        raise UnsupportedModelError(
            f"{blind} is quantised in a way that lets no gradient through on this device, so method {method.name!r} "
            "would optimise blindly; compute the patch on the unquantised model, and apply it here"
        )
    context.generator = seeded(context.seed)
    with own_settings(context), left_as_found(context.model, f"method {method.name!r}"):
        patch = context.host.compute_patch(context, requests, hparams)
    if not isinstance(patch, EditPatch):
        distribution = context.method_distribution or "(unknown distribution)"
        raise PluginError(
            f"method {method.name!r} of {distribution} returned {type(patch).__name__} from compute_patch, not "
            "EditPatch; build it with context.new_patch",
            plugin=method.name,
            distribution=distribution,
            hook="compute_patch",
        )
    if undeclared := sorted({operation.type for operation in patch.operations} - method.operations):
        raise MethodError(
            f"method {method.name!r} made operations of type {', '.join(undeclared)} and declares only "
            f"{', '.join(sorted(method.operations))}; its author must add them to its MethodInfo"
        )
    return patch


def run_rounds(context: EditContext, calls: Sequence[Round], on_patch: OnPatch | None = None) -> tuple[EditPatch, ...]:
    """Compute and apply round after round; the patches that are on the model afterwards."""
    method, _ = _chosen(context)
    extend = method.state == "extend"
    made: tuple[EditPatch, ...] = ()
    with context.progress("editing, round after round", total=len(calls)) as step:
        for call in calls:
            patch = compute_round(context, call)
            if extend and context.previous is not None:
                take_off(context, context.previous)
            # the stack's choice, where the user made none, holds for all that follows
            context.way = context.host.apply_to_model(context, patch, context.way).way
            context.records.setdefault("patch_bytes", []).append(float(len(patch.to_bytes())))
            made = (patch,) if extend else (*made, patch)
            context.previous = patch
            if on_patch is not None:
                on_patch(patch, call)
            step.advance()
    return made


def settle(context: EditContext, made: Sequence[EditPatch]) -> EditPatch:
    """The rounds as one patch, standing on the model in their place (the weights are the same bit for bit)."""
    if len(made) == 1:
        return made[0]
    joined = EditPatch.join(made)
    for patch in reversed(made):
        take_off(context, patch)
    context.host.apply_to_model(context, joined, context.way)
    return joined


def take_off(context: EditContext, patch: EditPatch) -> None:
    """Have a patch taken off by whoever put it on; MethodError when nobody did, so that none stays on unnoticed."""
    if not context.host.restore(context, patch):
        raise MethodError(
            f"the patch {patch.id[:12]} was not taken off: some plugin's restore answered False where it must take the "
            "patch off, or answer None to leave that to others"
        )


@contextmanager
def undone_on_failure(stack: PatchStack) -> Iterator[None]:
    """Whatever ends the body early, the patches on the model and the gradient mode are afterwards as before."""
    before, gradients = stack.patches, torch.is_grad_enabled()
    try:
        yield
    except BaseException:
        torch.set_grad_enabled(gradients)
        stack.reset_to(before)
        raise


@contextmanager
def own_settings(context: EditContext) -> Iterator[None]:
    """The same edit whatever the caller's surroundings: no autocast, and no inference_mode (it takes no gradients).

    Raises UnsupportedModelError for a model that several processes hold between them: methods run its parts by
    themselves and read activations, of which each process has a share only.
    """
    reshard(context.model)
    if meshes(context.model):
        raise UnsupportedModelError(
            "this model is spread over several processes (FSDP or tensor parallelism), where no edit can be computed; "
            "compute the patch on the whole model (offloaded, if memory is short) and apply it here"
        )
    with ExitStack() as settings:
        for kind in {parameter.device.type for parameter in context.model.parameters()}:
            if kind != "meta" and torch.amp.is_autocast_available(kind):
                settings.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            settings.enter_context(torch.inference_mode(False))
            settings.enter_context(torch.no_grad())
        yield


def _chosen(context: EditContext) -> tuple[MethodInfo, HyperParams]:
    if context.method is None or context.hparams is None:
        raise MethodError("no edit can be computed without a method; give the Editor one")
    return context.method, context.hparams
