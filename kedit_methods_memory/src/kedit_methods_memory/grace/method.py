"""GRACE: a codebook of keys with radii that replaces one projection's output.

Hartvigsen et al. 2023, "Aging with GRACE" (arXiv 2211.11031). No weight is touched; prompts outside of all radii are
answered bit for bit as before.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from attrs import evolve
from torch import Tensor

from kedit_core.contract import hookimpl
from kedit_core.editing import EditContext
from kedit_core.editing.checks import warn_missed
from kedit_core.forward import ForwardTools
from kedit_core.patches import EditPatch
from kedit_core.requests import EditRequest
from kedit_methods_memory.beneath import beneath, requests_of
from kedit_methods_memory.facts import Fact, fitting
from kedit_methods_memory.grace.book import Admission, Label, Rules
from kedit_methods_memory.grace.record import Record
from kedit_methods_memory.grace.training import train
from kedit_methods_memory.hparams.grace import GraceHyperParams
from kedit_methods_memory.projections import Projection, projection
from kedit_methods_memory.questions import bytes_needed
from kedit_methods_memory.reading import read
from kedit_methods_memory.rounding import rounding

_TRIED = 2  # edits whose training is timed for a plan
_STEPS = 3  # of it


class Grace:
    """The method ``grace``.

    Memory beside the model, for E edits at a projection of sizes in and out: 8 E (in + out) bytes for keys, values and
    their history, and the activations behind the codebook of the prompts that are trained together
    (``memory_budget``). The patch holds 4 E (in + out) bytes, and as much again of edits that share a key.
    """

    @hookimpl
    def prepare_requests(self, context: EditContext, requests: Sequence[EditRequest]) -> None:
        """Refuse, before any work, a layer or part that the model does not have, and requests too long for it."""
        if context.hparams is not None:
            hparams = cast(GraceHyperParams, context.hparams)
            projection(context.adapter, hparams.layer, hparams.part)
        fitting(context, requests)

    @hookimpl
    def compute_patch(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: GraceHyperParams
    ) -> EditPatch:
        """The codebook so far with these requests in it, one after another."""
        place = projection(context.adapter, hparams.layer, hparams.part)
        facts = fitting(context, requests)
        previous = context.previous
        with beneath(context) as forward:
            before = Record.empty(Rules.of(hparams, rounding(context.model)), place.width, place.out)
            if previous is not None:
                before = Record.of(previous, hparams)
            record = _taken_in(context, forward, place, facts, hparams, before)
        return _patch(context, record, place, (*requests_of(previous), *requests), hparams)

    @hookimpl
    def drop_request(self, context: EditContext, patch: EditPatch, request_id: str) -> EditPatch:
        """The codebook without that request: the others' structural steps are replayed.

        Only where edits share a value that they did not share before, it is trained on the later of them again.
        """
        hparams = cast(GraceHyperParams, context.hparams)
        place = projection(context.adapter, hparams.layer, hparams.part)
        requests = requests_of(patch)
        gone = [i for i, request in enumerate(requests) if request.id == request_id]
        record, anew = Record.of(patch, hparams).without(gone)
        left = [each for each in requests if each.id != request_id]
        for each in anew:
            facts = fitting(context, [left[each.edit]])
            start = record.after[each.before].unsqueeze(0)
            record.after[each.edit] = _trained(context, context.forward, place, facts, start, hparams)[0]
        record.settle()
        made = _patch(context, record, place, left, hparams)
        return evolve(made, parents=patch.parents)

    @hookimpl
    def plan(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: GraceHyperParams
    ) -> Mapping[str, Any]:
        """The module, memory and size of the file, and how long it takes: from a few steps for a few requests."""
        place = projection(context.adapter, hparams.layer, hparams.part)
        facts = fitting(context, requests)
        tried = facts[:_TRIED]
        start = torch.zeros(len(tried), place.out)

        def timed(steps: int) -> float:
            began = time.perf_counter()
            train(context.forward, place, tried, start, evolve(hparams, n_iter=steps))
            return time.perf_counter() - began

        timed(1)  # warms up
        once = timed(1)
        step = max(timed(1 + _STEPS) - once, 0.0) / _STEPS
        needed = [bytes_needed(context.adapter, fact, hparams.layer) for fact in facts]
        kept = 4 * len(facts) * (place.width + place.out + 1)
        together = sum(needed) if context.scenario == "batch" and hparams.fast else max(needed)
        return {
            "places": [place.name],
            "seconds": (once + step * (hparams.n_iter - 1)) * len(facts) / len(tried),
            "memory_bytes": max(max(needed), min(together, context.memory_budget)) + 2 * kept,
            "patch_bytes": kept,
            "notes": [
                f"at most {len(facts)} keys of radius {hparams.eps0:g} at the input of {place.name}",
                "time: from a few steps on this machine; many values trained together take less",
            ],
        }


def _taken_in(
    context: EditContext,
    forward: ForwardTools,
    place: Projection,
    facts: Sequence[Fact],
    hparams: GraceHyperParams,
    before: Record,
) -> Record:
    """The record with these facts in it: read, admitted, and their values trained."""
    late = hparams.compat == "original" and not forward.view.is_encoder_decoder
    readings = read(forward, place, [(*fact.prompt, *fact.target[:1]) if late else fact.prompt for fact in facts])
    record, done = before.admitted(readings.inputs, [_label(fact, hparams) for fact in facts])
    first = len(before.log)
    for wave in waves(done):
        start = torch.stack([_start(context, record, facts[i], done[i], readings.outputs[i], hparams) for i in wave])
        values = _trained(context, forward, place, [facts[i] for i in wave], start, hparams)
        for row, i in enumerate(wave):
            record.values[done[i].key] = values[row]
            record.after[first + i] = values[row]
    return record


def _trained(
    context: EditContext,
    forward: ForwardTools,
    place: Projection,
    facts: Sequence[Fact],
    start: Tensor,
    hparams: GraceHyperParams,
) -> Tensor:
    """The values ``[facts, out]`` float32 on the CPU; warns of targets that they do not reach."""
    found = train(forward, place, facts, start, hparams, memory_budget=context.memory_budget, show=context.progress)
    warn_missed(context, found.losses, "raise n_iter or edit_lr, or choose another layer")
    return found.values.cpu().float()


def waves(done: Sequence[Admission]) -> list[list[int]]:
    """Edits by number, in groups whose values can be trained together: of one key, each waits for the one before."""
    counts: dict[int, int] = {}
    found: list[list[int]] = []
    for number, admission in enumerate(done):
        wave = counts.get(admission.key, 0)
        counts[admission.key] = wave + 1
        if wave == len(found):
            found.append([])
        found[wave].append(number)
    return found


def _label(fact: Fact, hparams: GraceHyperParams) -> Label:
    """What tells answers apart: the target's ids; as published, with -100 for each token of the prompt."""
    return fact.label if hparams.compat == "none" else (*(-100 for _ in fact.prompt), *fact.target)


def _start(
    context: EditContext, record: Record, fact: Fact, admission: Admission, output: Tensor, hparams: GraceHyperParams
) -> Tensor:
    """What a value begins as ``[out]``: as the key has it, or anew.

    The random start depends on seed and request alone, so it is the same in a batch, in a sequence, and when others
    are dropped.
    """
    if not admission.begins:
        return record.values[admission.key]
    if hparams.value_init == "warm":
        return output.to(record.values.dtype)
    seed = int.from_bytes(hashlib.sha256(f"{context.seed} {fact.id}".encode()).digest()[:7])
    return torch.rand(len(output), generator=torch.Generator().manual_seed(seed))


def _patch(
    context: EditContext,
    record: Record,
    place: Projection,
    requests: Sequence[EditRequest],
    hparams: GraceHyperParams,
) -> EditPatch:
    late = hparams.compat == "original" and not context.adapter.is_encoder_decoder
    config = {
        "replacement": hparams.replacement,
        "token": "first_target" if late else "last_prompt",
        "requery": hparams.compat == "easyedit",
    }
    state, tensors = record.state()
    return context.new_patch(
        [record.operation(place.name, config)], requests, state_config=state, state_tensors=tensors
    )
