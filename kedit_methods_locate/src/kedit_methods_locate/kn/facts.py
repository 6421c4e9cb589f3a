"""One request's knowledge neurons: its prompts attributed, and what they, their negatives and other facts leave."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.editing import EditContext
from kedit_core.forward import Pair, generate_ids
from kedit_core.requests import EditRequest
from kedit_methods_locate.hparams.kn import KnHyperParams
from kedit_methods_locate.kn.attribution import Attribution, attribute
from kedit_methods_locate.kn.selection import (
    NeuronId,
    Neurons,
    adapted_share,
    coarse,
    enough,
    refined,
    relation,
    too_common,
)

_KEPT = 100  # neurons named in a patch's record


@frozen(eq=False)
class Located:
    """Where a fact is.

    Attributes:
        pair: the request's prompt with its old answer.
        scores: mean over the prompts, ``[blocks, neurons]``.
        first: attribution of the request's own prompt.
        sets: the neurons that each prompt found.
        share: of prompts that a neuron had to be found by.
        neurons: those left after all.
    """

    pair: Pair
    scores: Tensor
    first: Attribution
    sets: tuple[Neurons, ...]
    share: float
    neurons: Neurons

    def score(self, neuron: NeuronId) -> float:
        """Mean score of a neuron over the prompts."""
        return float(self.scores[neuron])


def prompts_of(request: EditRequest, hparams: KnHyperParams) -> tuple[str, ...]:
    """The prompts that express the fact, its own first."""
    more = request.rephrase_prompts if hparams.prompts == "rephrase" else ()
    return tuple(dict.fromkeys((request.prompt, *more)))


def negatives_of(request: EditRequest, hparams: KnHyperParams) -> tuple[str, ...]:
    """The prompts whose neurons are left alone."""
    return tuple(each.replace("{}", request.subject or "", 1) for each in hparams.negative_prompts)


def pairs_of(context: EditContext, request: EditRequest, hparams: KnHyperParams) -> list[Pair]:
    """Each prompt with the old answer as ids: the request's, or what the model predicts for its own prompt."""
    prompts = prompts_of(request, hparams)
    if hparams.old_answer == "given" and request.ground_truth is not None:
        return [context.tokens.pair(prompt, request.ground_truth) for prompt in prompts]
    answer = predicted(context, request.prompt, request)
    return [Pair(context.tokens.prompt(prompt).ids, answer) for prompt in prompts]


def predicted(context: EditContext, prompt: str, request: EditRequest) -> tuple[int, ...]:
    """What the model says greedily after ``prompt``: as many tokens as the request's new answer has."""
    count = len(context.tokens.pair(request.prompt, request.target_new).target_ids)
    ids = context.tokens.prompt(prompt).ids
    (found,) = generate_ids(
        context.forward.model, context.adapter, context.tokens, [ids], count, scope=context.stack.scope, ignore_eos=True
    )
    return tuple(found)


def locate(
    context: EditContext, request: EditRequest, hparams: KnHyperParams, others: Sequence[Sequence[Neurons]]
) -> Located:
    """The neurons of a request on the model as it is now.

    ``others`` has the sets of each other fact of the same relation, one set a prompt.
    """
    pairs = pairs_of(context, request, hparams)
    tables = [_attribute(context, pair, hparams) for pair in pairs]
    sets = tuple(_coarse(table, hparams) for table in tables)
    share, least = 0.0, hparams.refine_min_prompts
    if len(sets) > 1:
        share = adapted_share([sets, *others], hparams.refine_share, hparams.adapt_rounds, least)
    found = refined(sets, share, least)
    for prompt in negatives_of(request, hparams):
        pair = Pair(context.tokens.prompt(prompt).ids, predicted(context, prompt, request))
        found -= _coarse(_attribute(context, pair, hparams), hparams)
    if hparams.max_frequency is not None and enough(len(others), hparams.max_frequency):
        found -= too_common(found, [refined(each, share, least) for each in others], hparams.max_frequency)
    scores = torch.stack([table.scores for table in tables]).mean(0)
    return Located(pairs[0], scores, tables[0], sets, share, found)


def relatives(context: EditContext, request: EditRequest, hparams: KnHyperParams) -> list[tuple[Neurons, ...]]:
    """The sets of the edit's other facts of the same relation, found on the model without any patch; kept."""
    if hparams.max_frequency is None and not hparams.adapt_rounds:
        return []
    mine = relation(request)
    same = [each for each in context.requests if each.id != request.id and relation(each) == mine]
    settings = json.dumps(hparams.to_dict(), sort_keys=True)

    return [
        context.remember(("kn", settings, each.id, each.rephrase_prompts), partial(_on_base, context, each, hparams))
        for each in same
    ]


def _on_base(context: EditContext, request: EditRequest, hparams: KnHyperParams) -> tuple[Neurons, ...]:
    with context.stack.suspended():
        pairs = pairs_of(context, request, hparams)
        return tuple(_coarse(_attribute(context, pair, hparams), hparams) for pair in pairs)


def record(located: Located, relative: float | None) -> Mapping[str, object]:
    """What a reader of the patch may want to know of one edit: numbers only, the strongest neurons first; ``relative``
    is the largest update of a block against its weight."""
    strongest = sorted(located.neurons, key=lambda each: (-located.score(each), each))[:_KEPT]
    return {
        "prompts": len(located.sets),
        "old_probability": located.first.probability,
        "found": [len(each) for each in located.sets],
        "share": located.share,
        "selected": len(located.neurons),
        "relative_weight_norm": relative,
        "neurons": [[block, index, located.score((block, index))] for block, index in strongest],
    }


def _attribute(context: EditContext, pair: Pair, hparams: KnHyperParams) -> Attribution:
    return attribute(
        context.forward,
        pair,
        steps=hparams.steps,
        grid=hparams.grid,
        neuron=hparams.neuron,
        memory_budget=context.memory_budget,
        show=context.progress,
    )


def _coarse(table: Attribution, hparams: KnHyperParams) -> Neurons:
    return coarse(table.scores, hparams.threshold_rule, hparams.threshold, inclusive=hparams.threshold_inclusive)
