"""The method ``malmen``: what a trained network wants of every token, and one least-squares shift for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from kedit_core.contract import hookimpl
from kedit_core.editing import EditContext
from kedit_core.errors import MethodError
from kedit_core.forward import Pair
from kedit_core.patches import DenseDelta, EditPatch, LowRankDelta
from kedit_core.requests import EditRequest
from kedit_core.training import TrainingContext
from kedit_methods_meta.dropping import remaining
from kedit_methods_meta.edited import LowRank
from kedit_methods_meta.factors import Factors
from kedit_methods_meta.hparams.malmen import MalmenHyperParams, MalmenTrainingHyperParams
from kedit_methods_meta.malmen import accumulated
from kedit_methods_meta.malmen.editor import MalmenEditor
from kedit_methods_meta.malmen.reading import read
from kedit_methods_meta.malmen.spill import spill_folder
from kedit_methods_meta.malmen.training import MalmenTrainer
from kedit_methods_meta.pairs import edit_pairs
from kedit_methods_meta.places import Place
from kedit_methods_meta.planning import delta_bytes, seconds_of
from kedit_methods_meta.saved_editor import loaded


class Malmen:
    """Massive editing by least-squares aggregation of a hyper-network's shifts.

    Tan et al. 2024 (arXiv 2311.04661). It needs a trained editor (resource ``editor``). All requests of a call are
    solved for together, however many; in a sequence each round is solved on the weights as they are and added, or with
    ``accumulate`` all rounds are solved for anew on the unedited weights.

    Memory beside the model: the editor once, the activations of a micro-batch, for each edited weight 4 in + 8 out
    bytes for each token (with the option ``spill``, the path of a folder, all but 4 out of them are in files there) and
    8 times the square of the smaller of its inputs and its tokens. The patch holds 4 (in + out) bytes for each token
    and edited weight, or 4 in * out where that is less.
    """

    @hookimpl
    def prepare_requests(self, context: EditContext, requests: Sequence[EditRequest]) -> None:
        """Refuse an editor that is missing, damaged or for another base, and requests that are too long.

        Raises RequirementError, InputError, BaseMismatchError, RequestError; requests stay as they are.
        """
        if isinstance(context.hparams, MalmenHyperParams):
            editor = loaded(context, MalmenEditor)
            self._pairs(context, editor, requests)
            spill_folder(context.options)
            if context.hparams.accumulate:
                accumulated.earlier(context, editor)

    @hookimpl
    def compute_patch(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: MalmenHyperParams
    ) -> EditPatch:
        """One delta for each edited weight."""
        editor = loaded(context, MalmenEditor)
        pairs = self._pairs(context, editor, requests)
        kept: dict[str, Tensor] = {}
        if hparams.accumulate:
            earlier = accumulated.earlier(context, editor)
            with context.stack.suspended():
                factors, values = _wanted(context, editor, pairs, hparams)
            operations, kept = accumulated.solve(editor, earlier, factors, values)
        else:
            factors, values = _wanted(context, editor, pairs, hparams)
            operations = _operations(editor, factors, values)
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
        editor = loaded(context, MalmenEditor)
        pairs = self._pairs(context, editor, requests)
        seconds = seconds_of(lambda: _operations(editor, *_wanted(context, editor, pairs[:1], hparams)))
        tokens = {place.name: sum(_tokens(place, pair, editor, context) for pair in pairs) for place in editor.places}
        size = delta_bytes(editor.places, tokens)
        kept = sum(4 * tokens[place.name] * sum(place.shape) for place in editor.places)
        squares = max(8 * min(tokens[place.name], place.width) ** 2 for place in editor.places)
        return {
            "places": [place.name for place in editor.places],
            "seconds": seconds * len(pairs),
            "memory_bytes": editor.bytes + 2 * kept + size + squares,
            "patch_bytes": size + (kept if hparams.accumulate else 0),
            "notes": [
                f"an editor of {editor.bytes / 1e6:.0f} MB; {max(tokens.values())} tokens are solved for",
                "time: of the first request alone on this machine, for each; together they go faster",
            ],
        }

    @staticmethod
    def _pairs(context: EditContext, editor: MalmenEditor, requests: Sequence[EditRequest]) -> list[Pair]:
        return edit_pairs(context, requests, None, editor.settings.append_eos)


def _wanted(
    context: EditContext, editor: MalmenEditor, pairs: Sequence[Pair], hparams: MalmenHyperParams
) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """Keys and wanted changes of all tokens, by name of weight, on the weights as they are now."""
    factors = read(context.forward, pairs, editor.places, editor.settings, spill_folder(context.options))
    values = editor.values(factors)
    return factors, {name: hparams.strength * each.to(factors[name].inputs.dtype) for name, each in values.items()}


def _operations(
    editor: MalmenEditor, factors: Mapping[str, Factors], values: Mapping[str, Tensor]
) -> list[LowRankDelta | DenseDelta]:
    """One delta for each edited weight."""
    made = [_solved(editor, name, factors[name], wanted) for name, wanted in values.items()]
    return [operation for operation in made if operation is not None]


def _solved(editor: MalmenEditor, name: str, factors: Factors, values: Tensor) -> LowRankDelta | DenseDelta | None:
    rows, width = factors.inputs.shape
    if not rows:
        return None
    normal = editor.normal(name, factors.inputs)
    if rows * (width + values.shape[1]) >= width * values.shape[1]:
        return DenseDelta(name, normal.shift(values).T)
    return LowRank(normal.spread(), values, factors.edit).operation(name)


def _tokens(place: Place, pair: Pair, editor: MalmenEditor, context: EditContext) -> int:
    """How many keys a pair gives a place."""
    if place.encoder:
        return len(pair.prompt_ids)
    if editor.settings.token == "ans" or context.adapter.is_encoder_decoder:
        return len(pair.target_ids)
    return len(pair.prompt_ids) + len(pair.target_ids) - 1
