"""MELO: each batch of edits trains a small block of a low-rank adapter, and a database picks the block for a prompt.

Yu et al. 2024, "MELO: Enhancing Model Editing with Neuron-Indexed Dynamic LoRA" (arXiv 2312.11795). No weight is
touched; prompts outside of all clusters are answered bit for bit as before.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

from attrs import evolve, frozen
from torch import Tensor

from kedit_core.contract import hookimpl
from kedit_core.editing import EditContext
from kedit_core.editing.checks import warn_missed
from kedit_core.errors import InputError
from kedit_core.forward import ForwardTools
from kedit_core.models import ModelView
from kedit_core.patches import EditPatch
from kedit_core.requests import EditRequest
from kedit_methods_memory.beneath import beneath, requests_of
from kedit_methods_memory.facts import Fact, fitting
from kedit_methods_memory.hparams.melo import MeloHyperParams
from kedit_methods_memory.melo.record import Record
from kedit_methods_memory.melo.training import Block, train
from kedit_methods_memory.projections import Projection, decoder_projections, projection, projections
from kedit_methods_memory.questions import bytes_needed
from kedit_methods_memory.reading import read
from kedit_methods_memory.rounding import rounding

_STEPS = 3  # of a training that is timed for a plan


@frozen(eq=False)
class Places:
    """The scope projection, and those that get an adapter."""

    scope: Projection
    targets: tuple[Projection, ...]

    @classmethod
    def of(cls, view: ModelView, hparams: MeloHyperParams) -> Places:
        """As the settings name them; InputError for blocks or parts that the model does not have."""
        found = [
            each
            for layer in hparams.layers
            for part in hparams.parts
            for each in projections(view, layer, part, "layers")
        ]
        found += [
            each
            for layer in hparams.decoder_layers
            for part in hparams.parts
            for each in decoder_projections(view, layer, part)
        ]
        return cls(projection(view, hparams.scope_layer, hparams.scope_part, "scope_layer"), tuple(found))


class Melo:
    """The method ``melo``.

    Memory beside the model, for B blocks of rank p on targets of sizes in and out, and E edits read at width d:
    4 B p (in + out) bytes summed over the targets, 8 E d bytes, and the activations behind the lowest adapter of one
    batch of edits (``memory_budget``). The patch holds the blocks, and 4 d bytes for each edit.
    """

    @hookimpl
    def prepare_requests(self, context: EditContext, requests: Sequence[EditRequest]) -> None:
        """Refuse, before any work, places that the model does not have, requests too long, and too many of them."""
        if context.hparams is not None:
            hparams = cast(MeloHyperParams, context.hparams)
            Places.of(context.adapter, hparams)
            if context.scenario == "batch":
                _check_capacity(hparams, _used(context), len(requests), len(requests))
        fitting(context, requests)

    @hookimpl
    def compute_patch(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: MeloHyperParams
    ) -> EditPatch:
        """The database so far with these requests in it, a block for every ``edits_per_block`` of them."""
        _check_capacity(hparams, _used(context), len(_to_come(context, requests)), len(requests))
        places, facts = Places.of(context.adapter, hparams), fitting(context, requests)
        previous = context.previous
        record = Record.empty(hparams.radius, places.scope.out, rounding(context.model))
        if previous is not None:
            record = Record.of(previous, hparams.radius)
        size = hparams.edits_per_block
        with beneath(context) as forward, context.progress("blocks", total=float(len(facts))) as step:
            for first in range(0, len(facts), size):
                batch = facts[first : first + size]
                block = _trained(context, forward, places, batch, hparams)
                record = record.grown(_queries(forward, places, batch), [fact.label for fact in batch], block)
                step.advance(len(batch))
        _warn_forgotten(context, record, len(facts))
        return _patch(context, record, places, (*requests_of(previous), *requests), hparams)

    @hookimpl
    def drop_request(self, context: EditContext, patch: EditPatch, request_id: str) -> EditPatch:
        """The database without that request: the log of the others is replayed.

        A block that the request shared with others is trained anew on those others; one that was its own goes.
        """
        hparams = cast(MeloHyperParams, context.hparams)
        places, requests = Places.of(context.adapter, hparams), requests_of(patch)
        before = Record.of(patch, hparams.radius)
        facts = fitting(context, requests)
        record = Record.empty(hparams.radius, places.scope.out, before.database.slack)
        for batch, block in zip(before.batches(), before.blocks, strict=True):
            kept = [i for i in batch if requests[i].id != request_id]
            if not kept:
                continue
            if len(kept) < len(batch):
                block = _trained(context, context.forward, places, [facts[i] for i in kept], hparams)
            record = record.grown(before.queries[kept], [before.labels[i] for i in kept], block)
        made = _patch(context, record, places, [each for each in requests if each.id != request_id], hparams)
        return evolve(made, parents=patch.parents)

    @hookimpl
    def plan(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: MeloHyperParams
    ) -> Mapping[str, Any]:
        """The modules, memory and size of the file, and how long it takes: from a few steps of one batch."""
        places, facts = Places.of(context.adapter, hparams), fitting(context, requests)
        size = min(hparams.edits_per_block, len(facts)) if context.scenario == "batch" else 1
        batches = -(-len(facts) // size)

        def timed(steps: int) -> float:
            began = time.perf_counter()
            train(context.forward, places.targets, facts[:size], evolve(hparams, num_iter=steps), context.seed)
            return time.perf_counter() - began

        timed(1)  # warms up
        once = timed(1)
        step = max(timed(1 + _STEPS) - once, 0.0) / _STEPS
        numbers = hparams.rank * sum(target.width + target.out for target in places.targets)
        needed = max(bytes_needed(context.adapter, fact, min(hparams.layers, default=0)) for fact in facts)
        kept = 4 * (batches * numbers + len(facts) * (places.scope.out + 1))
        return {
            "places": [places.scope.name, *(target.name for target in places.targets)],
            "seconds": batches * (once + step * (hparams.num_iter - 1)),
            "memory_bytes": min(size * needed, max(needed, context.memory_budget)) + 16 * numbers + 2 * kept,
            "patch_bytes": kept,
            "notes": [
                f"{batches} of {hparams.blocks} blocks of rank {hparams.rank}, each {numbers} numbers",
                "time: from a few steps on this machine",
            ],
        }


def _used(context: EditContext) -> int:
    """Blocks that the patch of the round before holds."""
    return 0 if context.previous is None else int(context.previous.state.config.get("next_block", 0))


def _to_come(context: EditContext, requests: Sequence[EditRequest]) -> Sequence[EditRequest]:
    """The requests of this round and, in the first of a sequence, of those after it.

    A later round of equal requests looks like the first, but for the facts that the last patch ends with. Of several
    ways to see it the one with the fewest to come is taken, so that nothing is refused that there is room for.
    """
    here = [each.id for each in requests]
    if context.scenario != "sequential" or [each.id for each in context.requests[: len(here)]] != here:
        return requests
    every, before = [each.id for each in context.requests], [each.id for each in requests_of(context.previous)]
    for done in range(min(len(before), len(every) - len(here)), 0, -1):
        if every[done : done + len(here)] == here and before[len(before) - done :] == every[:done]:
            return context.requests[done:]
    return context.requests


def _check_capacity(hparams: MeloHyperParams, used: int, requests: int, in_round: int) -> None:
    """InputError when there are not enough blocks left for requests that come ``in_round`` at a time."""
    size = hparams.edits_per_block
    rounds, rest = divmod(requests, in_round)
    needed = rounds * -(-in_round // size) + -(-rest // size)
    if used + needed > hparams.blocks:
        larger = "edits_per_block" if in_round > size else "batch_size (requests of a round) and edits_per_block"
        raise InputError(
            f"{requests} requests need {needed} blocks, and {hparams.blocks - used} of {hparams.blocks} are left; set "
            f"blocks to {used + needed} or more for the first edit, or raise {larger}"
        )


def _queries(forward: ForwardTools, places: Places, facts: Sequence[Fact]) -> Tensor:
    return read(forward, places.scope, [fact.prompt for fact in facts]).outputs.float()


def _trained(
    context: EditContext, forward: ForwardTools, places: Places, facts: Sequence[Fact], hparams: MeloHyperParams
) -> Block:
    block = train(forward, places.targets, facts, hparams, context.seed, memory_budget=context.memory_budget)
    warn_missed(context, block.losses, "raise num_iter, lr or rank, or lower edits_per_block")
    return block


def _warn_forgotten(context: EditContext, record: Record, new: int) -> None:
    """Warn of earlier edits that new ones put out of reach: by lying near, or by asking the same."""
    done = record.log[-new:]
    taken = sum(each.forgotten for each in done if each.case == "overwritten")
    gone = sum(each.forgotten for each in done) - taken
    if gone:
        context.warn(
            "edits_forgotten",
            float(gone),
            "lower radius, or choose another scope_layer, so that facts with different answers lie apart",
            f"edits that lie too near to a new one with another answer, and are answered as before them: {gone}",
        )
    if taken:
        context.warn(
            "edits_overwritten",
            float(taken),
            "keep one target for each prompt; dropping the later edit brings the earlier one back",
            f"edits whose prompt a new one has too, with another answer that is given from now on: {taken}",
        )


def _patch(
    context: EditContext,
    record: Record,
    places: Places,
    requests: Sequence[EditRequest],
    hparams: MeloHyperParams,
) -> EditPatch:
    operation = record.operation(places.scope.name, [target.name for target in places.targets], hparams.factor)
    state, tensors = record.state()
    return context.new_patch([operation], requests, state_config=state, state_tensors=tensors)
