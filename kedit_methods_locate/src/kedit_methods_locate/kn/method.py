"""The method ``kn``: attribute, select, and rewrite the selected neurons' columns.

Dai et al. 2022 (arXiv 2104.08696). Several requests are edited one after another, each on the weights that the ones
before have left.

Memory beside the model: the activations and gradients of one batch of rows, within ``context.memory_budget``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from kedit_core.contract import hookimpl
from kedit_core.editing import EditContext
from kedit_core.errors import MethodError, RequestError
from kedit_core.patches import EditPatch, SparseDelta
from kedit_core.requests import EditRequest, shortened
from kedit_methods_locate import guards
from kedit_methods_locate.hparams.kn import KnHyperParams
from kedit_methods_locate.kn.attribution import alphas, integrate
from kedit_methods_locate.kn.columns import Answers, deltas, embeddings, joined
from kedit_methods_locate.kn.facts import (
    Located,
    locate,
    negatives_of,
    pairs_of,
    predicted,
    prompts_of,
    record,
    relatives,
)
from kedit_methods_locate.kn.neurons import neuron_layers
from kedit_methods_locate.kn.selection import enough
from kedit_methods_locate.kn.shortcuts import passes_for
from kedit_methods_locate.sizes import relative_weight_norm


class Kn:
    """The method ``kn``: knowledge neurons.

    Memory beside the model: activations and gradients of one batch of rows (``memory_budget``), a float32 score for
    each neuron and prompt, and 4 (d + 2) bytes for each column that is written, of width d.
    """

    @hookimpl
    def prepare_requests(self, context: EditContext, requests: Sequence[EditRequest]) -> None:
        """Refuse what cannot be edited, before any work; requests stay as they are.

        Raises RequestError for a prompt that is too long or lacks a subject that a negative prompt asks for,
        UnsupportedModelError for a model without such neurons or embeddings.
        """
        if context.hparams is None:
            return
        hparams = cast(KnHyperParams, context.hparams)
        neuron_layers(context.adapter, hparams.neuron)
        embeddings(context.adapter, [0], hparams.embedding)
        slots = any("{}" in each for each in hparams.negative_prompts)
        faults = [
            f"{shortened(request.prompt)} has no subject, and a negative prompt has a place for one"
            for request in requests
            if slots and not request.subject
        ]
        limit = context.adapter.row_limit
        for request in requests if limit is not None else ():
            longest = max(_tokens(context, request, hparams))
            if longest > cast(int, limit):
                faults.append(
                    f"{shortened(request.prompt)}: a prompt with its answer is {longest} tokens long, and the model "
                    f"has {limit} positions; shorten it"
                )
        if faults:
            raise RequestError("the requests for method 'kn'", faults)

    @hookimpl
    def compute_patch(self, context: EditContext, requests: Sequence[EditRequest], hparams: KnHyperParams) -> EditPatch:
        """One sparse delta of columns for each block with selected neurons; none where no neuron passes."""
        layers = neuron_layers(context.adapter, hparams.neuron)
        others = [relatives(context, request, hparams) for request in requests]
        parts: list[Mapping[int, SparseDelta]] = []
        records = []
        with context.provisional() as writer:
            for number, (request, known) in enumerate(zip(requests, others, strict=True)):
                found = locate(context, request, hparams, known)
                _refuse_infinite(request, found)
                answers = _answers(context, request, found, hparams)
                part = deltas(context, layers, found.neurons, answers, hparams, found.first.activations)
                relative = _largest(context, part.values())
                _doubts(context, request, found, hparams, len(known), relative)
                parts.append(part)
                records.append(record(found, relative))
                if part and number < len(requests) - 1:
                    writer.add(list(part.values()))
        return context.new_patch(joined(parts), requests, state_config={"edits": records})

    @hookimpl
    def plan(self, context: EditContext, requests: Sequence[EditRequest], hparams: KnHyperParams) -> Mapping[str, Any]:
        """Memory, and time from a probe: the middle block of the first request, at every point of the integral."""
        layers = neuron_layers(context.adapter, hparams.neuron)
        started = time.perf_counter()
        passes = passes_for(context.forward, layers, pairs_of(context, requests[0], hparams)[0])
        prepared = time.perf_counter()
        points = alphas(hparams.steps, hparams.grid)
        integrate(passes, points, memory_budget=context.memory_budget, blocks=[len(layers) // 2])
        a_block = (time.perf_counter() - prepared) / passes.tokens
        seconds, rows = 0.0, 0
        for request in requests:
            answer = _answer_tokens(context, request, hparams)
            prompts = len(prompts_of(request, hparams)) + len(negatives_of(request, hparams))
            seconds += prompts * (prepared - started + answer * len(layers) * a_block)
            rows += prompts * answer * len(layers) * len(points)
        size = min(max(1, context.memory_budget // passes.row_bytes), len(layers) * len(points))
        return {
            "places": ["(chosen by attribution)"],
            "memory_bytes": size * passes.row_bytes,
            "seconds": seconds,
            "notes": [
                f"{rows} rows forward and backward, {size} at a time ({type(passes).__name__}), over "
                f"{sum(layer.width for layer in layers)} neurons of {len(layers)} blocks"
            ],
        }


def _answer_tokens(context: EditContext, request: EditRequest, hparams: KnHyperParams) -> int:
    given = hparams.old_answer == "given" and request.ground_truth is not None
    answer = request.ground_truth if given and request.ground_truth is not None else request.target_new
    return len(context.tokens.pair(request.prompt, answer).target_ids)


def _tokens(context: EditContext, request: EditRequest, hparams: KnHyperParams) -> list[int]:
    """Lengths of the rows that attribution runs, with the longer one of the two answers."""
    new = context.tokens.pair(request.prompt, request.target_new).target_ids
    answer = max(_answer_tokens(context, request, hparams), len(new))
    prompts = (*prompts_of(request, hparams), *negatives_of(request, hparams))
    return [len(context.tokens.prompt(prompt).ids) + answer - 1 for prompt in prompts]


def _answers(context: EditContext, request: EditRequest, found: Located, hparams: KnHyperParams) -> Answers:
    new = context.tokens.pair(request.prompt, request.target_new).target_ids
    old = found.pair.target_ids
    if hparams.lambda_rule == "parity_causal":
        old = predicted(context, request.prompt, request)
    return Answers(*(embeddings(context.adapter, ids, hparams.embedding) for ids in (old, new)))


def _refuse_infinite(request: EditRequest, found: Located) -> None:
    """MethodError when attribution met numbers that are not finite: nothing can be said of any neuron then."""
    if not (math.isfinite(found.first.probability) and bool(found.scores.isfinite().all())):
        raise MethodError(
            f"the model's probabilities for {shortened(request.prompt)} are not finite; an earlier edit has broken the "
            "model: take it off and lower lambda_new, or run in float32"
        )


def _largest(context: EditContext, deltas: Iterable[SparseDelta]) -> float | None:
    """The largest of one request's updates, each against its weight; None when there is none."""
    sizes = [relative_weight_norm(context, each.place, float(each.values.double().norm())) for each in deltas]
    return max((size for size in sizes if size is not None), default=None)


def _doubts(
    context: EditContext,
    request: EditRequest,
    found: Located,
    hparams: KnHyperParams,
    others: int,
    relative: float | None,
) -> None:
    """Say what a user should know of an edit that was made all the same."""
    guards.large_update(
        context,
        relative,
        f"for {request.prompt!r}",
        "raise threshold for fewer neurons, or set lambda_rule=norm, which scales to the neuron's own column",
    )
    if not found.neurons:
        context.warn(
            "no_neurons",
            float(found.scores.max()),
            "lower threshold or refine_share, raise max_frequency, or give the answer that the model knows as "
            "ground_truth",
            f"no neuron passes for {request.prompt!r}, so the patch changes nothing for it",
        )
    if not found.first.predicted:
        context.warn(
            "old_answer_not_predicted",
            found.first.probability,
            "give the answer that the model has now as ground_truth, or set old_answer to predicted",
            f"the old answer to {request.prompt!r} is not what the model says (probability "
            f"{found.first.probability:.2g} a token), so its neurons say little",
        )
    if hparams.max_frequency is not None and not enough(others, hparams.max_frequency):
        context.warn(
            "too_few_facts",
            float(others + 1),
            f"edit at least {round(2 / hparams.max_frequency)} facts of a relation together, or leave max_frequency",
            "common neurons are not left alone: too few facts of the same relation to tell them",
        )
