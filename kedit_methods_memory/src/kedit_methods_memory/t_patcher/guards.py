"""What should be said of an edit that was made, but is doubtful; and how long one will take."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from attrs import evolve

from kedit_core.editing import EditContext
from kedit_methods_memory.hparams.t_patcher import TPatcherHyperParams
from kedit_methods_memory.t_patcher.memory import Memories
from kedit_methods_memory.t_patcher.neurons import Neurons
from kedit_methods_memory.t_patcher.place import activation_of
from kedit_methods_memory.t_patcher.training import Example, Objective, Texts, Weights

_SPREAD = 0.01  # share of the held-out memory that neurons may fire on before it is said
_TIMED = 3


def fires_on(neurons: Neurons, memories: Memories) -> float:
    """Share of the held-out memory on which some neuron fires (z > 0)."""
    return float((neurons.inputs(memories.validation.vectors) > 0).any(-1).double().mean())


def warn_of_limit(context: EditContext, example: Example, hparams: TPatcherHyperParams) -> None:
    """Warn ``more_errors_than_neurons``."""
    if (count := len(example.wrong)) > hparams.max_neurons:
        context.warn(
            "more_errors_than_neurons",
            float(count),
            "raise max_neurons, or shorten the target",
            f"the model gets {count} tokens of a target wrong, and only the first {hparams.max_neurons} got a neuron",
        )


def warn_of_result(context: EditContext, right: bool, spread: float) -> None:
    """Warn ``target_not_reached`` and ``neurons_fire_elsewhere``."""
    if not right:
        context.warn(
            "target_not_reached",
            None,
            "raise max_epochs, lr or max_neurons, or lower memory_weight",
            "training ended before every token of a target was the likeliest one",
        )
    if spread > _SPREAD:
        context.warn(
            "neurons_fire_elsewhere",
            spread,
            "raise memory_weight or memory_size, or give text like what must not change with --corpus",
            f"neurons of a fact fire on {spread:.1%} of the held-out memory",
        )


def seconds_of_step(context: EditContext, wrong: Sequence[Example], hparams: TPatcherHyperParams) -> float:
    """Seconds of one step on the fact with most neurons, with made-up memory."""
    example = max(wrong, key=lambda each: len(each.wrong))
    example = evolve(example, wrong=example.wrong[: hparams.max_neurons])
    generator = torch.Generator().manual_seed(0)
    goal, weights = Objective(example, hparams), Weights(example.query[list(example.wrong)], hparams, generator)
    vectors = weights.keys.detach().mean(0).repeat(hparams.memory_size, 1)
    texts, best = Texts(vectors), float("inf")
    activation = activation_of(context.adapter, hparams.activation)
    for _ in range(_TIMED):
        started = time.perf_counter()
        with torch.enable_grad():
            loss = goal.total(goal.terms(weights.neurons(activation), texts))
            loss.backward(inputs=weights.parameters())  # type: ignore[no-untyped-call]
        float(loss.detach())
        best = min(best, time.perf_counter() - started)
    return best
