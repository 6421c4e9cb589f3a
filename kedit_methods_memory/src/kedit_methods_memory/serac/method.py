"""The method ``serac``: an edit is a line in a memory, and nothing of the base is changed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve

from kedit_core.contract import hookimpl
from kedit_core.editing import EditContext
from kedit_core.editing.facts import facts_of, request_of
from kedit_core.patches import EditPatch, Requirement, RouterOperation, path_digest
from kedit_core.requests import EditRequest
from kedit_core.training import TrainingContext
from kedit_methods_memory.hparams.serac import SeracHyperParams, SeracTrainingHyperParams
from kedit_methods_memory.serac.checkpoint import SeracEditor, read_state
from kedit_methods_memory.serac.kept import editor_at
from kedit_methods_memory.serac.memory import KIND, Entry, Memory
from kedit_methods_memory.serac.router import ROLE
from kedit_methods_memory.serac.training import SeracTrainer

_FILE_BYTES = 4096  # of a patch beside its entries


class Serac:
    """Adds the requests to the memory of the patch before; a router sends prompts in their scope elsewhere.

    Mitchell et al. 2022 (arXiv 2206.06520). It needs a trained editor checkpoint (resource ``editor``), which every
    patch then requires. Each round's patch replaces the one before and holds all edits. The base is not run, and not
    changed; patches of other methods beneath count as the base.

    Memory beside the model: the classifier and the counterfactual model, once. The patch holds ``4 * width`` bytes for
    each edit (embedding form) and its text, in the clear.
    """

    @hookimpl
    def prepare_requests(self, context: EditContext, requests: Sequence[EditRequest]) -> None:
        """Refuse an editor that cannot be read and edits that its classifier would cut, before any work.

        Raises RequirementError, InputError; requests stay as they are.
        """
        if context.hparams is None:
            return
        if not _folder(context).exists():
            context.resource(ROLE)  # says what is wrong
        editor = _editor(context)
        for request in requests:
            entry = Entry.of(request, editor.scope)
            text = entry.classifier_text
            if editor.scope.cross_attend:  # the edit's own prompt must fit beside its key
                text = editor.classifier.paired(text, entry.prompt)
            editor.classifier.check_length(text)

    @hookimpl
    def make_trainer(self, context: TrainingContext, hparams: SeracTrainingHyperParams) -> SeracTrainer:
        """What trains scope classifier and counterfactual model."""
        return SeracTrainer(context, hparams)

    @hookimpl
    def compute_patch(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: SeracHyperParams
    ) -> EditPatch:
        """One router operation with all edits of this Editor that are on the model, the new ones last."""
        editor = _editor(context)
        memory = Memory.empty(editor, hparams.threshold, hparams.on_repeat == "keep")
        earlier: list[EditRequest] = []
        if context.previous is not None:
            earlier = [request_of(fact) for fact in facts_of(context.previous)]
            before = _memory_of(context.previous)
            # another checkpoint at the same path reads texts in its own way
            memory = before if before.editor == memory.editor else memory.adding(earlier, editor)
        memory = memory.adding(requests, editor)
        return context.new_patch([memory.operation()], [*earlier, *requests], requires=[_requirement(editor)])

    @hookimpl
    def drop_request(self, context: EditContext, patch: EditPatch, request_id: str) -> EditPatch:
        """The patch without the edits of this request; a prompt that it had taken over is its earlier edit's again.

        Needs no editor: the vectors of the others are in the patch.
        """
        memory = _memory_of(patch).without(request_id)
        requests = [fact for fact in facts_of(patch) if request_of(fact).id != request_id]
        return evolve(patch, operations=[memory.operation()], requests=requests)

    @hookimpl
    def plan(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: SeracHyperParams
    ) -> Mapping[str, Any]:
        """Memory of the two models, size of the file, and how long reading the texts takes, from one of them."""
        editor = _editor(context)
        entries = [Entry.of(request, editor.scope) for request in requests]
        started = time.perf_counter()
        with torch.no_grad():
            if not editor.scope.cross_attend:
                editor.classifier.embed([entries[0].classifier_text])
        seconds = time.perf_counter() - started
        models = [editor.classifier.model]
        if editor.counterfactual is not None:
            models.append(editor.counterfactual.model)
        vectors = 0 if editor.scope.cross_attend else 4 * editor.classifier.width
        texts = sum(len(str(each).encode()) for entry in entries for each in (entry, entry.prompt, entry.target))
        answers = "the base itself" if editor.counterfactual is None else type(editor.counterfactual.model).__name__
        notes = [f"prompts in scope are answered by {answers}, all others by the base, bit for bit as before"]
        if editor.scope.cross_attend:
            notes.append("the cross-attention form reads every prompt once for each entry of the memory")
        return {
            "places": ["(none: prompts are routed before the model)"],
            "seconds": seconds * len(entries),
            "memory_bytes": sum(p.nbytes for model in models for p in model.parameters()),
            "patch_bytes": _FILE_BYTES + vectors * len(entries) + texts,
            "notes": notes,
        }


def _folder(context: EditContext) -> Path:
    return Path(context.resources[ROLE]) if ROLE in context.resources else context.resource(ROLE)


def _editor(context: EditContext) -> SeracEditor:
    """The editor checkpoint of a context, loaded once for an Editor, its digest in the patch's manifest."""
    folder = _folder(context)
    read_state(folder)
    marks = tuple((path.as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")))
    digest = context.remember(("serac digest", marks), lambda: path_digest(folder))
    context.note_resource(ROLE, digest)
    device = context.forward.device
    return context.remember(
        ("serac editor", digest, str(device)), lambda: editor_at(context.model, folder, digest, device)
    )


def _requirement(editor: SeracEditor) -> Requirement:
    return Requirement(role=ROLE, name="serac-editor", sha256=editor.digest)


def _memory_of(patch: EditPatch) -> Memory:
    operations = [each for each in patch.operations if isinstance(each, RouterOperation) and each.kind == KIND]
    return Memory.of(operations[0])
