"""What the methods that edit facts where they are located share: which layers there are, which requests fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from kedit_core.contract import Choice, hookimpl
from kedit_core.editing import EditContext
from kedit_core.errors import InputError
from kedit_core.hparams import HyperParams
from kedit_core.requests import EditRequest
from kedit_methods_locate.choosing import choose_layers
from kedit_methods_locate.hparams.base import ContextHyperParams
from kedit_methods_locate.lengths import check_prompts


class LocateMethod:
    """A method whose settings name the layers that are edited, and whose facts are read in several contexts."""

    @hookimpl
    def prepare_requests(self, context: EditContext, requests: Sequence[EditRequest]) -> None:
        """Refuse layers that the model does not have and requests too long for it, before any work (InputError).

        Requests stay as they are.
        """
        if context.hparams is not None:
            check_layers(context, cast(ContextHyperParams, context.hparams))
        check_prompts(context, requests)

    @hookimpl
    def choose_hparams(
        self,
        context: EditContext,
        requests: Sequence[EditRequest],
        hparams: HyperParams,
        undecided: tuple[str, ...],
    ) -> Choice | None:
        """Layers by causal tracing, where there is no preset and there are a few facts to trace."""
        return choose_layers(context, requests, hparams, undecided)


def check_layers(context: EditContext, hparams: ContextHyperParams) -> None:
    """InputError for layers that the model does not have."""
    count = context.adapter.num_layers
    for setting, layers in hparams.named_layers().items():
        if beyond := [layer for layer in layers if layer >= count]:
            what = setting if setting.endswith("_layer") else "layer"
            raise InputError(
                f"{what} {beyond[0]} is not in this model of {count} layers (0 to {count - 1}); choose {setting} among "
                "these"
            )
