"""The method ``malmen``: what a trained network wants of every token, and one least-squares shift for all of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

from attrs import evolve
from torch import Tensor

from kedit_core.contract import hookimpl
from kedit_core.editing import EditContext
from kedit_core.errors import MethodError
from kedit_core.forward import Pair
from kedit_core.patches import DenseDelta, EditPatch, LowRankDelta
from kedit_core.requests import EditRequest
from kedit_core.training import EditorFolder, TrainingContext
from kedit_methods_meta.dropping import remaining
from kedit_methods_meta.edited import LowRank
from kedit_methods_meta.factors import Factors
from kedit_methods_meta.hparams.malmen import MalmenHyperParams, MalmenTrainingHyperParams
from kedit_methods_meta.malmen import accumulated
from kedit_methods_meta.malmen.editor import MalmenEditor
from kedit_methods_meta.malmen.reading import read
from kedit_methods_meta.malmen.training import MalmenTrainer
from kedit_methods_meta.pairs import edit_pairs

ROLE = "editor"


class Malmen:
    """Massive editing by least-squares aggregation of a hyper-network's shifts.

    Tan et al. 2024 (arXiv 2311.04661). It needs a trained editor (resource ``editor``). All requests of a call are
    solved for together, however many; in a sequence each round is solved on the weights as they are and added, or with
    ``accumulate`` all rounds are solved for anew on the unedited weights.

    Memory beside the model: the editor once, the activations of a micro-batch, for each edited weight 8 (in + out)
    bytes for each token and 8 times the square of the smaller of its inputs and its tokens. The patch holds
    4 (in + out) bytes for each token and edited weight, or 4 in * out where that is less.
    """

    @hookimpl
    def prepare_requests(self, context: EditContext, requests: Sequence[EditRequest]) -> None:
        """Refuse an editor that is missing, damaged or for another base, and requests that are too long.

        Raises RequirementError, InputError, BaseMismatchError, RequestError; requests stay as they are.
        """
        if isinstance(context.hparams, MalmenHyperParams):
            self._pairs(context, self._editor(context), requests)
            if context.hparams.accumulate:
                accumulated.check(context, EditorFolder.load(context, ROLE).digest)

    @hookimpl
    def compute_patch(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: MalmenHyperParams
    ) -> EditPatch:
        """One delta for each edited weight."""
        editor = self._editor(context)
        pairs = self._pairs(context, editor, requests)
        if hparams.accumulate:
            with context.stack.suspended():
                factors, values = _wanted(context, editor, pairs, hparams)
            operations, kept = accumulated.solve(context, editor, factors, values)
        else:
            factors, values = _wanted(context, editor, pairs, hparams)
            made = [_solved(editor, name, factors[name], values[name]) for name in values]
            operations, kept = [each for each in made if each is not None], {}
        if not operations:
            raise MethodError("none of the requests has a token to edit at; check their prompts and answers")
        state = {
            "tokens": {name: len(each) for name, each in values.items()},
            "accumulated": hparams.accumulate,
        }
        return context.new_patch(operations, requests, state_config=state, state_tensors=kept)

    @hookimpl
    def drop_request(self, context: EditContext, patch: EditPatch, request_id: str) -> EditPatch:
        """The patch made again without this request.

        Raises InputError for a patch of several rounds.
        """
        hparams = cast(MalmenHyperParams, context.hparams)
        made: EditPatch = self.compute_patch(context, remaining(context, patch, request_id), hparams)
        return made

    @hookimpl
    def make_trainer(self, context: TrainingContext, hparams: MalmenTrainingHyperParams) -> MalmenTrainer:
        """What ``kedit train --method malmen`` runs."""
        return MalmenTrainer(context, hparams)

    @hookimpl
    def plan(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: MalmenHyperParams
    ) -> Mapping[str, Any]:
        """The edited weights, memory and size of the file from the number of tokens, and the time of one edit."""
        editor = self._editor(context)
        pairs = self._pairs(context, editor, requests)
        _wanted(context, editor, pairs[:1], hparams)  # also warms up
        started = time.perf_counter()
        factors, values = _wanted(context, editor, pairs[:1], hparams)
        for name in values:
            _solved(editor, name, factors[name], values[name])
        seconds = time.perf_counter() - started
        lengths = [len(p.target_ids) if editor.settings.token == "ans" else len(p.prompt_ids) for p in pairs]
        tokens = sum(lengths)
        rows = sum(4 * min(tokens * sum(place.shape), place.width * place.out) for place in editor.places)
        squares = max(8 * min(tokens, place.width) ** 2 for place in editor.places)
        held = sum(tensor.nbytes for tensor in editor.tensors().values())
        return {
            "places": [place.name for place in editor.places],
            "seconds": seconds * len(pairs),
            "memory_bytes": held + 3 * rows + squares,
            "patch_bytes": rows * (2 if hparams.accumulate else 1),
            "notes": [
                f"an editor of {held / 1e6:.0f} MB; about {tokens} tokens are solved for",
                "time: of the first request alone on this machine, for each; together they go faster",
            ],
        }

    def _editor(self, context: EditContext) -> MalmenEditor:
        """The context's editor, loaded once."""
        folder = EditorFolder.load(context, ROLE)
        device = context.forward.device

        def load() -> MalmenEditor:
            return MalmenEditor.of(context.adapter, folder.config, folder.tensors).to(device)

        return context.remember(("malmen editor", folder.digest, str(device)), load)

    @staticmethod
    def _pairs(context: EditContext, editor: MalmenEditor, requests: Sequence[EditRequest]) -> list[Pair]:
        return edit_pairs(context, requests, None, editor.settings.append_eos)


def _wanted(
    context: EditContext, editor: MalmenEditor, pairs: Sequence[Pair], hparams: MalmenHyperParams
) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """Keys and wanted changes of all tokens, by name of weight, on the weights as they are now."""
    factors = read(context.forward, pairs, editor.places, editor.settings)
    values = {
        name: hparams.strength * each.to(factors[name].inputs.dtype) for name, each in editor.values(factors).items()
    }
    here = {name: evolve(factors[name], inputs=factors[name].inputs.to(each.device)) for name, each in values.items()}
    return here, values


def _solved(editor: MalmenEditor, name: str, factors: Factors, values: Tensor) -> LowRankDelta | DenseDelta | None:
    normal = editor.normal(name, factors.inputs)
    rows, width = factors.inputs.shape
    if rows and rows * (width + values.shape[1]) >= width * values.shape[1]:
        return DenseDelta(name, normal.shift(values).T)
    return LowRank(normal.spread(), values, factors.edit).operation(name) if rows else None
