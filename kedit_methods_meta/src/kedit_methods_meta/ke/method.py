"""The method ``ke``: the trained network reads the edit, and its gradient becomes an update."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from kedit_core.contract import hookimpl
from kedit_core.editing import EditContext
from kedit_core.forward import Pair
from kedit_core.patches import DenseDelta, EditPatch, LowRankDelta
from kedit_core.requests import EditRequest
from kedit_core.training import EditorFolder, TrainingContext
from kedit_methods_meta.dropping import remaining
from kedit_methods_meta.edited import LowRank
from kedit_methods_meta.factors import gradient_factors
from kedit_methods_meta.hparams.ke import KeHyperParams, KeTrainingHyperParams
from kedit_methods_meta.ke.condition import answers_so_far, condition_ids, condition_text
from kedit_methods_meta.ke.editor import KeEditor
from kedit_methods_meta.ke.training import KeTrainer
from kedit_methods_meta.pairs import edit_pairs
from kedit_methods_meta.planning import delta_bytes, seconds_of
from kedit_methods_meta.questions import questions
from kedit_methods_meta.saved_editor import ROLE, warn_of_half_precision


class Ke:
    """KnowledgeEditor: a hyper-network trained under a constraint.

    De Cao, Aziz, Titov 2021 (arXiv 2104.08164). It needs a trained editor (resource ``editor``), which reads
    ``old answer >> new answer || prompt`` and the gradient of the new answer's loss. It is made for one edit: a request
    alone is edited again until the model gives the new answer (``iterations``). Several at once get an update each, on
    the weights as they are now, and these are summed; a sequence takes the gradient anew in each round. Both drift.

    Memory beside the model: the editor once (a copy of the embeddings is part of it), activations above the lowest
    edited weight (within the memory budget), and 4 (in + out) bytes for each token and edited weight.
    """

    @hookimpl
    def prepare_requests(self, context: EditContext, requests: Sequence[EditRequest]) -> None:
        """Refuse an editor that is missing, damaged or for another base, and requests that do not fit the model.

        Raises RequirementError, InputError, BaseMismatchError, RequestError; requests stay as they are.
        """
        if isinstance(context.hparams, KeHyperParams):
            _pairs(context, _editor(context), requests)

    @hookimpl
    def compute_patch(self, context: EditContext, requests: Sequence[EditRequest], hparams: KeHyperParams) -> EditPatch:
        """One delta for each edited weight: of all requests, and of all iterations."""
        editor = _editor(context)
        pairs = _pairs(context, editor, requests)
        texts = [
            condition_text(said, request.target_new, request.prompt)
            for request, said in zip(requests, answers_so_far(context, pairs), strict=True)
        ]
        updates = [_update(context, editor, texts, pairs, hparams)]
        if len(pairs) == 1 and hparams.iterations > 1:
            self._again(context, editor, texts, pairs, hparams, updates)
        state = {
            "trained_as": EditorFolder.load(context, ROLE).config.get("trained_as", "ke"),
            "batched": len(pairs) > 1,
            "iterations": len(updates),
            # a digest: the text says the fact, which its author may keep private
            "conditions_sha256": [hashlib.sha256(text.encode()).hexdigest() for text in texts],
        }
        whole = {name: _sum([update[name] for update in updates]) for name in updates[0]}
        return context.new_patch(_operations(whole), requests, state_config=state)

    @hookimpl
    def drop_request(self, context: EditContext, patch: EditPatch, request_id: str) -> EditPatch:
        """The patch made again without this request.

        Raises InputError for a patch of several rounds, or when nothing is left.
        """
        hparams = cast(KeHyperParams, context.hparams)
        made: EditPatch = self.compute_patch(context, remaining(context, patch, request_id), hparams)
        return made

    @hookimpl
    def make_trainer(self, context: TrainingContext, hparams: KeTrainingHyperParams) -> KeTrainer:
        """What ``kedit train --method ke`` runs."""
        return KeTrainer(context, hparams)

    @hookimpl
    def plan(self, context: EditContext, requests: Sequence[EditRequest], hparams: KeHyperParams) -> Mapping[str, Any]:
        """The edited weights, memory and size of the file from the number of tokens, and the time of one edit."""
        editor = _editor(context)
        pairs = _pairs(context, editor, requests)
        text = condition_text(requests[0].ground_truth or "", requests[0].target_new, requests[0].prompt)
        seconds = seconds_of(lambda: _update(context, editor, [text], pairs[:1], hparams))
        rows = sum(len(pair.prompt_ids) + len(pair.target_ids) + 1 for pair in pairs)
        size = delta_bytes(editor.places, {place.name: rows for place in editor.places})
        return {
            "places": [place.name for place in editor.places],
            "seconds": seconds * len(pairs),
            "memory_bytes": editor.bytes + 3 * size + context.memory_budget // 4,
            "patch_bytes": size,
            "notes": [
                f"an editor of {editor.bytes / 1e6:.0f} MB; rank at most {rows} (tokens, and one more a request)",
                "time: of the first request alone on this machine, applied once, for each",
                f"a request alone is applied up to {hparams.iterations} times; several are edited apart and summed",
            ],
        }

    @staticmethod
    def _again(
        context: EditContext,
        editor: KeEditor,
        texts: Sequence[str],
        pairs: Sequence[Pair],
        hparams: KeHyperParams,
        updates: list[dict[str, LowRank]],
    ) -> None:
        """Add updates until the model gives the new answer, or may not be edited again."""
        with context.provisional() as writer:
            writer.add(_operations(updates[0]))
            while len(updates) < hparams.iterations and not _answers(context, pairs[0]):
                same = hparams.again == "same"
                updates.append(updates[0] if same else _update(context, editor, texts, pairs, hparams))
                writer.add(_operations(updates[-1]))


def _editor(context: EditContext) -> KeEditor:
    """The context's editor, loaded once."""
    folder = EditorFolder.load(context, ROLE)
    device = context.forward.device
    warn_of_half_precision(context)
    return context.remember(
        ("ke editor", folder.digest, str(device)), lambda: KeEditor.of(context.forward, folder.config, folder.tensors)
    )


def _pairs(context: EditContext, editor: KeEditor, requests: Sequence[EditRequest]) -> list[Pair]:
    return edit_pairs(context, requests, None, editor.settings.append_eos)


def _update(
    context: EditContext, editor: KeEditor, texts: Sequence[str], pairs: Sequence[Pair], hparams: KeHyperParams
) -> dict[str, LowRank]:
    """What the editor makes of these edits on the weights as they are now."""
    factors = gradient_factors(context.forward, pairs, editor.places, portion=hparams.portion)
    conditions = [condition_ids(context, text, editor.settings.condition_tokens) for text in texts]
    with torch.no_grad():
        made: dict[str, LowRank] = editor(conditions, factors)
    return made


def _sum(updates: Sequence[LowRank]) -> LowRank:
    return LowRank(*(torch.cat([getattr(each, name) for each in updates]) for name in ("inputs", "outputs", "edit")))


def _operations(update: Mapping[str, LowRank]) -> list[LowRankDelta | DenseDelta]:
    """The deltas of an update; a weight that it does not change has none."""
    made = [change.operation(name) for name, change in update.items() if bool(change.outputs.any())]
    return [operation for operation in made if operation is not None]


def _answers(context: EditContext, pair: Pair) -> bool:
    """Whether the model, as it is, gives the new answer: each of its tokens is the likeliest after those before it."""
    asked = questions(context.forward, [pair])
    with torch.no_grad():
        logits = context.forward.run(asked.batch, logits_at=asked.cells).logits
    return logits is not None and bool((logits.argmax(-1) == asked.tokens).all())
