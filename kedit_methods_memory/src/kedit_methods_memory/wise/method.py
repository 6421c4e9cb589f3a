"""The method ``wise``: side memories of one projection, trained shard by shard, answering where they react strongly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from attrs import evolve, frozen
from torch import Tensor

from kedit_core.contract import hookimpl
from kedit_core.editing import EditContext
from kedit_core.editing.checks import refuse_long, row_length, warn_missed
from kedit_core.errors import InputError
from kedit_core.forward import ForwardTools, evaluating
from kedit_core.models.parameters import bare
from kedit_core.models.storage import matrix_of
from kedit_core.patches import EditPatch, ModuleOperation
from kedit_core.requests import EditRequest
from kedit_methods_memory.beneath import beneath, requests_of
from kedit_methods_memory.hparams.wise import WiseHyperParams
from kedit_methods_memory.projections import Projection, projection
from kedit_methods_memory.wise.activation import phi_name, phi_of
from kedit_methods_memory.wise.answering import Answering
from kedit_methods_memory.wise.irrelevant import irrelevant_texts, own_texts
from kedit_methods_memory.wise.lesson import lesson_of, lines_of
from kedit_methods_memory.wise.log import Edited, Log
from kedit_methods_memory.wise.losses import Margins
from kedit_methods_memory.wise.memories import Bank, Memory
from kedit_methods_memory.wise.planning import planned
from kedit_methods_memory.wise.replay import Replay
from kedit_methods_memory.wise.sharding import generator_for, settled, subspace
from kedit_methods_memory.wise.templates import templates_for
from kedit_methods_memory.wise.training import Learnt, Trainer, learn

KIND = "wise.memory"


@frozen(eq=False)
class _Learner:
    """What all rounds of one patch share."""

    context: EditContext
    hparams: WiseHyperParams
    forward: ForwardTools
    place: Projection
    templates: tuple[str, ...]

    def round(
        self, bank: Bank, log: Log, requests: Sequence[EditRequest], texts: Sequence[tuple[str, ...]]
    ) -> tuple[Bank, Log]:
        """Bank and log after one more round; its texts are the irrelevant ones of each request."""
        context, hparams, place = self.context, self.hparams, self.place
        shape = (place.out, place.width)
        mask = subspace(shape, hparams.rho, context.seed, bank.shards - (bank.open is not None))
        budget = context.memory_budget
        lesson = lesson_of(self.forward, place, requests, self.templates, texts, budget)
        phi = phi_of(_phi(context, hparams))
        weight = _weight(context, place)
        start = torch.zeros(shape, dtype=weight.dtype) if bank.open is None else bank.open.delta()
        trainer = Trainer(lesson, Margins.of(hparams), phi)
        found = learn(
            trainer, start.to(weight.device), mask.to(weight.device), weight, hparams, self._replay(log, requests, bank)
        )
        lowest, held = (math.inf, 0) if bank.open is None else (bank.open.a_min, bank.open.edits)
        opened = Memory.of(found.delta, min(lowest, *found.inside), held + len(requests))
        _warn(context, requests, found, opened.a_min, hparams)
        bank = bank.with_open(opened, len(requests))
        log = log.with_round(
            [
                Edited(irrelevant=irrelevant, nll=nll, inside=inside, outside=outside, group=bank.merges)
                for irrelevant, nll, inside, outside in zip(texts, found.nll, found.inside, found.outside, strict=True)
            ],
            requests,
            len(found.losses),
        )
        return settled(bank, hparams, context.seed), log

    def _replay(self, log: Log, requests: Sequence[EditRequest], bank: Bank) -> Replay | None:
        hparams = self.hparams
        if not hparams.replay or not bank.merges:
            return None
        return Replay(
            forward=self.forward,
            place=self.place,
            templates=self.templates,
            phi=phi_of(_phi(self.context, hparams)),
            earlier=log.groups(bank.merges),
            own=(*log.group(bank.merges), *requests),
            low=hparams.replay_low,
            high=hparams.replay_high,
            begun=sum(log.steps),
            generator=generator_for(self.context.seed, "replay", bank.edits),
        )


class Wise:
    """WISE (Wang et al. 2024, arXiv 2405.14768): edits live in side memories of one MLP matrix; which memory answers a
    prompt, if any, is told by how differently it reacts to it.

    Each round trains the shard in the making on its own requests, so older edits in it are not guaranteed; full shards
    are put away and merged. A patch replaces the one of the round before.

    Memory beside the model, for a matrix of P entries: 4 P bytes for each side memory, 20 P while training, and the
    context's memory budget for activations. The patch holds P/8 bytes and 4 bytes for each entry that may differ, for
    each memory.
    """

    @hookimpl
    def prepare_requests(self, context: EditContext, requests: Sequence[EditRequest]) -> None:
        """Refuse a projection that this model does not have, and requests too long for it, before any work.

        Raises InputError or RequestError; requests stay as they are.
        """
        if not isinstance(context.hparams, WiseHyperParams):
            return
        _place(context, context.hparams)
        _phi(context, context.hparams)
        lengths = []
        for request in requests:
            own_texts(request)
            (line,) = lines_of(context.forward, [request], ["{}"], [()])
            lengths.append(row_length(context.adapter, line.fact.prompt, line.fact.target))
        refuse_long(context, requests, lengths)

    @hookimpl
    def compute_patch(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: WiseHyperParams
    ) -> EditPatch:
        """The memories after one more round."""
        previous = context.previous
        bank, log = Bank(), Log()
        if previous is not None:
            bank, log = _bank(previous), Log.read(previous.state.config, requests_of(previous))
        texts = irrelevant_texts(context, requests, hparams)
        with beneath(context) as forward, evaluating(context.model):
            templates = log.templates or templates_for(context, forward, hparams)
            learner = _Learner(context, hparams, forward, _place(context, hparams), templates)
            bank, log = learner.round(bank, evolve(log, templates=templates), requests, texts)
        return _patch(context, hparams, bank, log)

    @hookimpl
    def drop_request(self, context: EditContext, patch: EditPatch, request_id: str) -> EditPatch:
        """The same rounds trained anew without that request, from what the patch says of each: what editing with the
        others alone gives, where rounds were of one request or there was one round.

        Raises InputError for a patch that was joined from several."""
        hparams = cast(WiseHyperParams, context.hparams)
        _memories_of(patch)
        old = Log.read(patch.state.config, requests_of(patch))
        bank, log = Bank(), Log(templates=old.templates)
        rounds = [[pair for pair in pairs if pair[0].id != request_id] for pairs in old.pairs()]
        with (
            beneath(context) as forward,
            evaluating(context.model),
            context.progress("training the memories without the request", total=float(sum(map(len, rounds)))) as step,
        ):
            learner = _Learner(context, hparams, forward, _place(context, hparams), old.templates)
            for pairs in filter(None, rounds):
                bank, log = learner.round(
                    bank, log, [request for request, _ in pairs], [edited.irrelevant for _, edited in pairs]
                )
                step.advance(len(pairs))
        return _patch(context, hparams, bank, log)

    @hookimpl
    def plan(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: WiseHyperParams
    ) -> Mapping[str, Any]:
        """The projection, memory and size of the file, and at most how long it takes, from one step."""
        return planned(context, requests, hparams, _place(context, hparams))


def _patch(context: EditContext, hparams: WiseHyperParams, bank: Bank, log: Log) -> EditPatch:
    place = _place(context, hparams)
    operation = ModuleOperation(
        places=(place.name,),
        kind=KIND,
        config={
            "act": _phi(context, hparams),
            "bank": bank.config(),
            **Answering.of(hparams, context.seed).config(),
        },
        tensors=bank.tensors(),
    )
    patch = context.new_patch([operation], log.requests, state_config=log.config())
    # only the projection is changed, so only it is described: the stack's own hook reads a mask
    stack = context.adapter.name_of(context.adapter.block(0)).rpartition(".")[0].rpartition(".")[0]
    return evolve(patch, operations=(evolve(operation, places=(stack, place.name)),))


def _bank(patch: EditPatch) -> Bank:
    operation = _memories_of(patch)
    return Bank.read(operation.config["bank"], operation.tensors)


def _memories_of(patch: EditPatch) -> ModuleOperation:
    """The patch's one operation. Raises InputError for a patch that was joined from several."""
    found = [each for each in patch.operations if isinstance(each, ModuleOperation) and each.kind == KIND]
    if len(patch.states()) > 1 or len(found) != 1:
        raise InputError(
            f"patch {patch.id[:12]} was joined from several, each with side memories of its own, so single edits "
            "cannot be taken out of it; take them out of the patches it was joined from"
        )
    return found[0]


def _place(context: EditContext, hparams: WiseHyperParams) -> Projection:
    place = projection(context.adapter, hparams.layer, hparams.part)
    _weight(context, place)
    return place


def _phi(context: EditContext, hparams: WiseHyperParams) -> str | None:
    return phi_name(context.adapter) if hparams.act == "phi" else None


def _weight(context: EditContext, place: Projection) -> Tensor:
    """The main weight as it is now, ``[out, in]``, float32 or wider. Raises UnsupportedModelError when it is packed."""
    name = f"{context.adapter.name_of(bare(place.module))}.weight"
    weight = matrix_of(context.model, name).detach()
    oriented = weight.T if context.adapter.layout(name) == "in_out" else weight
    device = context.stack.place(context.adapter.first_name(name)).device
    return oriented.to(device, torch.promote_types(weight.dtype, torch.float32))


def _warn(
    context: EditContext, requests: Sequence[EditRequest], found: Learnt, a_min: float, hparams: WiseHyperParams
) -> None:
    """Warn of targets that stay unlikely, and of irrelevant texts that the shard answers.

    a_min: smallest routing activation of the shard's edits, those of earlier rounds too.
    """
    warn_missed(context, found.nll, "raise n_iter, lr or norm_constraint, or choose another layer")
    threshold = hparams.act_ratio * a_min
    loud = [outside for outside in found.outside if outside is not None and outside >= threshold and outside > 0]
    if loud:
        context.warn(
            "routing_not_apart",
            max(loud) / a_min if a_min else None,
            "raise act_ratio, gamma or n_iter, lower alpha, or choose another layer",
            f"the side memory will answer irrelevant texts of {len(loud)} of {len(requests)} edits too: it reacts with "
            f"{max(loud):.3g} to one, and answers from {threshold:.3g} on, {hparams.act_ratio:g} of its weakest edit",
        )
