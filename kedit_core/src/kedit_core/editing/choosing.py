"""Settings that nobody set, decided by looking at the model."""

from __future__ import annotations

from typing import Any

from kedit_core.editing.context import EditContext
from kedit_core.editing.guard import left_as_found
from kedit_core.editing.rounds import own_settings
from kedit_core.errors import HyperParamsError, PluginError
from kedit_core.hparams import Resolved


def decided(context: EditContext, settings: Resolved[Any]) -> Resolved[Any]:
    """The settings after the method's ``choose_hparams``, which sees the base model.

    Raises:
        MethodError: the method changed the model.
        PluginError: it chose something that it was not asked for, or that its own settings refuse.
    """
    name = context.method.name if context.method is not None else "none"
    with (
        context.stack.suspended(),
        own_settings(context),
        left_as_found(context.model, f"method {name!r} (choose_hparams)"),
    ):
        choice = context.host.choose_hparams(context, context.requests, settings.hparams, settings.undecided)
    if choice is None:
        return settings
    try:
        return settings.chosen(choice.values, choice.source, choice.reason)
    except HyperParamsError as error:
        distribution = context.method_distribution or "(unknown distribution)"
        raise PluginError(
            f"method {name!r} of {distribution} chose settings that cannot be taken ({'; '.join(error.faults)}); give "
            "them yourself with -p",
            plugin=name,
            distribution=distribution,
            hook="choose_hparams",
        ) from error
