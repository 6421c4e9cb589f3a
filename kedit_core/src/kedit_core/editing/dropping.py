"""Taking single facts out of a patch: what the method must be given, and what it must give back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kedit_core.editing.context import EditContext, seeded
from kedit_core.editing.facts import facts_of, request_of, requests_named
from kedit_core.editing.guard import left_as_found
from kedit_core.editing.rounds import own_settings
from kedit_core.errors import InputError, MethodError, PluginError, StackOrderError, UnknownNameError
from kedit_core.hparams import HyperParams
from kedit_core.patches import EditPatch, PatchStack, PrivateRequests, baseline
from kedit_core.patches.digests import dtype_name
from kedit_core.patches.places import Place
from kedit_core.plugins import Catalogue


def settings_of(patch: EditPatch, catalogue: Catalogue) -> HyperParams:
    """The settings a patch was made with, whole, as the class of its method.

    Raises:
        UnknownNameError: its method is not installed.
        HyperParamsError: the method that is installed has no such settings any more.
    """
    try:
        info = catalogue.method(patch.method.name)
    except UnknownNameError as error:
        error.add_note(f"the patch was made by {patch.method.distribution} {patch.method.version}")
        raise
    settings: HyperParams = catalogue.hparams_class(info).from_dict(
        patch.hparams, f"the settings of patch {patch.id[:12]} ({patch.method.distribution} {patch.method.version})"
    )
    return settings


def base_name(patch: EditPatch) -> str:
    """Hub id or registered name of the model a patch is for; InputError when it does not say."""
    if patch.base.name is None:
        raise InputError(
            f"patch {patch.id[:12]} does not name the {patch.base.architecture} it is for; give the model "
            "(--model MODEL)"
        )
    return patch.base.name


def drop(context: EditContext, patch: EditPatch, case_id: str, allow_unverified: bool) -> EditPatch:
    """The patch without what ``case_id`` names; see :meth:`Editor.drop` for arguments and errors."""
    wanted = requests_named(patch, case_id)
    _check_maker(context, patch)
    _check_base(context, patch, allow_unverified)
    context.requests = tuple(map(request_of, facts_of(patch)))
    context.previous = None  # an extending method's new patch replaces none
    context.model_name = patch.base.name or context.model_name
    context.revision = patch.base.revision or context.revision
    with _as_when_made(context.stack, patch):
        for request_id in wanted:
            patch = _without(context, patch, request_id)
    return patch


def _check_maker(context: EditContext, patch: EditPatch) -> None:
    """InputError unless the context's method, settings and seed are those that the patch was made with."""
    if context.method is None or context.hparams is None or context.method.name != patch.method.name:
        mine = f"has method {context.method.name!r}" if context.method else "has no method"
        raise InputError(
            f"patch {patch.id[:12]} was made by {patch.method.name!r} and this Editor {mine}; make one with "
            "Editor.for_patch(patch)"
        )
    made_with, here = settings_of(patch, context.host.catalogue).to_dict(), context.hparams.to_dict()
    other = [f"{name} {made_with[name]!r} and not {here[name]!r}" for name in here if made_with[name] != here[name]]
    if patch.seed is not None and patch.seed != context.seed:
        other.append(f"seed {patch.seed} and not {context.seed}")
    if other:
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        raise InputError(
            f"patch {patch.id[:12]} was made with {', '.join(other[:3])}{more}; make an Editor with "
            "Editor.for_patch(patch)"
        )
    if not any(not each.wrapper for each in context.host.hook.drop_request.get_hookimpls()):
        raise InputError(
            f"method {context.method.name!r} cannot take single facts out of a patch; remove the patch, and edit again "
            "without the fact"
        )


def _check_base(context: EditContext, patch: EditPatch, allow_unverified: bool) -> None:
    """BaseMismatchError unless the base under the stack is the one the patch was made for, as when it is applied."""
    stack = context.stack

    def digest(place: Place, dtype: torch.dtype) -> str:
        return stack.base_of([place.name]).tensors[place.name].sha256[dtype_name(dtype)]

    places = baseline.check_places(context.model, patch.base, force=False)
    baseline.verify(context.model, patch, places, digest, allow_unverified=allow_unverified, name=context.model_name)


@contextmanager
def _as_when_made(stack: PatchStack, patch: EditPatch) -> Iterator[None]:
    """Only the parents of ``patch`` on the model for the length of a block, in their order; then all as it was.

    Raises StackOrderError naming the parents that are not on it, or not in their order.
    """
    before = stack.patches
    on = [entry.patch.id for entry in before]
    if missing := [parent for parent in patch.parents if parent not in on]:
        raise StackOrderError(
            f"patch {patch.id[:12]} was made on top of {', '.join(missing)}, not on the model now; apply "
            f"{'that' if len(missing) == 1 else 'these, in this order,'} first (--patch FILE)"
        )
    beneath = tuple(entry for entry in before if entry.patch.id in patch.parents)
    if tuple(entry.patch.id for entry in beneath) != patch.parents:
        raise StackOrderError(
            f"the parents of patch {patch.id[:12]} are on the model in another order; apply them in the order "
            f"{', '.join(patch.parents)}"
        )
    if beneath == before:
        yield
        return
    stack.reset_to(beneath)
    try:
        yield
    finally:
        stack.reset_to(before)


def _without(context: EditContext, patch: EditPatch, wanted: str) -> EditPatch:
    """The method's patch without the request of this id, checked to be that; the model is checked to be as it was.

    Raises MethodError when the method cannot, changed the model, or gave another patch than was asked for; PluginError
    when it gave no patch.
    """
    name = patch.method.name
    context.generator = seeded(context.seed)
    with own_settings(context), left_as_found(context.model, f"method {name!r} (drop_request)"):
        made = context.host.drop_request(context, patch, wanted)
    if made is None:
        raise MethodError(
            f"method {name!r} cannot take this fact out of patch {patch.id[:12]}; remove the patch, and edit again "
            "without the fact"
        )
    if not isinstance(made, EditPatch):
        distribution = context.method_distribution or "(unknown distribution)"
        raise PluginError(
            f"method {name!r} of {distribution} returned {type(made).__name__} from drop_request, not EditPatch",
            plugin=name,
            distribution=distribution,
            hook="drop_request",
        )
    if fault := _fault(context, patch, made, wanted):
        raise MethodError(f"method {name!r} dropped a request and gave a patch that {fault}; tell its author")
    return made


def _fault(context: EditContext, patch: EditPatch, made: EditPatch, wanted: str) -> str | None:
    """What is wrong with ``made`` as ``patch`` without a request, or None."""
    kept = [each for fact in facts_of(patch) if (each := request_of(fact).id) != wanted]
    if isinstance(made.requests, PrivateRequests) or [request_of(fact).id for fact in made.requests] != kept:
        return f"does not hold the {len(kept)} other requests as they were"
    if made.parents != patch.parents:
        return "stands on other patches than the one it is made from"
    if made.method.name != patch.method.name:
        return f"names the method {made.method.name!r}"
    declared = context.method.operations if context.method else frozenset()
    if undeclared := sorted({operation.type for operation in made.operations} - declared):
        return f"has operations of type {', '.join(undeclared)}, which the method does not declare"
    return None
