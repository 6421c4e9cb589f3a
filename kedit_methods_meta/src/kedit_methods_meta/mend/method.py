"""The method ``mend``: one pass forward and back, and a trained network makes the gradient into an edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from kedit_core.contract import hookimpl
from kedit_core.editing import EditContext
from kedit_core.errors import MethodError
from kedit_core.forward import Pair
from kedit_core.patches import EditPatch
from kedit_core.requests import EditRequest
from kedit_core.training import TrainingContext
from kedit_methods_meta.dropping import remaining
from kedit_methods_meta.edited import LowRank
from kedit_methods_meta.factors import gradient_factors
from kedit_methods_meta.hparams.mend import MendHyperParams, MendTrainingHyperParams
from kedit_methods_meta.mend.editor import MendEditor
from kedit_methods_meta.mend.training import MendTrainer
from kedit_methods_meta.pairs import edit_pairs
from kedit_methods_meta.planning import delta_bytes, seconds_of
from kedit_methods_meta.saved_editor import loaded


class Mend:
    """Model editor networks with gradient decomposition.

    Mitchell et al. 2022 (arXiv 2110.11309). It needs a trained editor (resource ``editor``). All requests of a call are
    one update: factors are taken on the weights as they are now, and made into factors of a low-rank delta. Rounds of a
    sequence add up; published results fall off after some tens of them.

    Memory beside the model: the editor once, activations above the lowest edited weight (within the memory budget), and
    the factors: 4 (in + out) bytes for each token and edited weight, which the patch holds too.
    """

    @hookimpl
    def prepare_requests(self, context: EditContext, requests: Sequence[EditRequest]) -> None:
        """Refuse an editor that is missing, damaged or for another base, and requests that do not fit it.

        Raises RequirementError, InputError, BaseMismatchError, RequestError; requests stay as they are.
        """
        if isinstance(context.hparams, MendHyperParams):
            self._pairs(context, loaded(context, MendEditor), requests)

    @hookimpl
    def compute_patch(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: MendHyperParams
    ) -> EditPatch:
        """One delta for each edited weight."""
        editor = loaded(context, MendEditor)
        pairs = self._pairs(context, editor, requests)
        changes = _changes(context, editor, pairs, hparams)
        made = [change.operation(name) for name, change in changes.items()]
        operations = [operation for operation in made if operation is not None]
        if not operations:
            raise MethodError(
                "the model gives the new answers with certainty already, so there is no gradient to edit with; leave "
                "these requests out"
            )
        rows = {name: len(change.inputs) for name, change in changes.items()}
        return context.new_patch(operations, requests, state_config={"sign": editor.settings.sign, "rows": rows})

    @hookimpl
    def drop_request(self, context: EditContext, patch: EditPatch, request_id: str) -> EditPatch:
        """The patch made again without this request.

        Raises InputError for a patch of several rounds.
        """
        hparams = cast(MendHyperParams, context.hparams)
        made: EditPatch = self.compute_patch(context, remaining(context, patch, request_id), hparams)
        return made

    @hookimpl
    def make_trainer(self, context: TrainingContext, hparams: MendTrainingHyperParams) -> MendTrainer:
        """What ``kedit train --method mend`` runs."""
        return MendTrainer(context, hparams)

    @hookimpl
    def plan(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: MendHyperParams
    ) -> Mapping[str, Any]:
        """The edited weights, memory and size of the file from the number of tokens, and the time of one edit."""
        editor = loaded(context, MendEditor)
        pairs = self._pairs(context, editor, requests)
        seconds = seconds_of(lambda: _changes(context, editor, pairs[:1], hparams))
        tokens = sum(len(pair.prompt_ids) + len(pair.target_ids) for pair in pairs)
        size = delta_bytes(editor.places, {place.name: tokens for place in editor.places})
        return {
            "places": [place.name for place in editor.places],
            "seconds": seconds * len(pairs),
            "memory_bytes": editor.bytes + 3 * size + context.memory_budget // 4,
            "patch_bytes": size,
            "notes": [
                f"an editor of {editor.bytes / 1e6:.0f} MB; rank at most {tokens} (tokens of all requests)",
                "time: of the first request alone on this machine, for each; together they go faster",
            ],
        }

    @staticmethod
    def _pairs(context: EditContext, editor: MendEditor, requests: Sequence[EditRequest]) -> list[Pair]:
        return edit_pairs(context, requests, editor.settings.instruction, editor.settings.append_eos)


def _changes(
    context: EditContext, editor: MendEditor, pairs: Sequence[Pair], hparams: MendHyperParams
) -> dict[str, LowRank]:
    factors = gradient_factors(
        context.forward, pairs, editor.places, reduction=editor.settings.reduction, portion=hparams.portion
    )
    with torch.no_grad():
        changes: dict[str, LowRank] = editor(factors, hparams.strength)
    return changes
