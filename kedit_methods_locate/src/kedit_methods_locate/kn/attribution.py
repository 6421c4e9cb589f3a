"""Which neurons carry an answer: integrated gradients of its probability (Dai et al. 2022, equation 2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.editing import progress
from kedit_core.forward import ForwardTools, Pair
from kedit_methods_locate.hparams.kn import Grid, Neuron
from kedit_methods_locate.kn.neurons import neuron_layers
from kedit_methods_locate.kn.passes import Passes
from kedit_methods_locate.kn.shortcuts import passes_for


@frozen(eq=False)
class Attribution:
    """Scores of all neurons for one prompt and answer.

    Attributes:
        scores: ``[blocks, neurons]`` mean over the answer's tokens; float32, or the model's dtype when that is wider.
        activations: ``[blocks, neurons]`` in the clean run, mean over the predicting positions.
        probability: of the answer's tokens, mean.
        predicted: whether the answer is what the model would say.
    """

    scores: Tensor
    activations: Tensor
    probability: float
    predicted: bool


def alphas(steps: int, grid: Grid) -> list[float]:
    """The shares of the clean activation at which the gradient is taken."""
    if grid == "inclusive":
        return [0.0] if steps == 1 else [k / (steps - 1) for k in range(steps)]
    first = 1 if grid == "right" else 0
    return [k / steps for k in range(first, first + steps)]


def attribute(
    forward: ForwardTools,
    pair: Pair,
    *,
    steps: int = 20,
    grid: Grid = "right",
    neuron: Neuron = "post",
    memory_budget: int | None = None,
    show: progress.Progress = progress.silent,
) -> Attribution:
    """Integrated gradients of p(answer | prompt) over each block's activations at the predicting position.

    All neurons of a block are scaled together. An answer of several tokens is fed token by token (the true ones), and
    the scores of its positions are averaged. In an encoder-decoder the blocks are the decoder's.

    Memory: one batch of rows (a block with one share of its activation) with its gradient, within ``memory_budget``
    bytes where that is given.
    """
    passes = passes_for(forward, neuron_layers(forward.view, neuron), pair)
    return integrate(passes, alphas(steps, grid), memory_budget=memory_budget, show=show)


def integrate(
    passes: Passes,
    points: list[float],
    *,
    blocks: Sequence[int] | None = None,
    memory_budget: int | None = None,
    show: progress.Progress = progress.silent,
) -> Attribution:
    """:func:`attribute` over given passes and points, of all blocks or of some (ascending; the others get zeros)."""
    clean, layers = passes.clean, passes.layers
    home = clean.logits.device
    scores = torch.zeros(len(layers), max(layer.width for layer in layers), dtype=passes.dtype, device=home)
    activations = torch.zeros_like(scores)
    for index, layer in enumerate(layers):
        activations[index, : layer.width] = clean.activations[index][:, : layer.width].to(scores).mean(0)
    limit = None if memory_budget is None else max(1, memory_budget // passes.row_bytes)
    chosen = range(len(layers)) if blocks is None else blocks
    total = passes.tokens * len(chosen) * len(points)
    with show("integrating over activations", total=float(total)) as step:
        for token in range(passes.tokens):
            base = [clean.activations[i][token, : layer.width].to(passes.dtype) for i, layer in enumerate(layers)]
            for chunk in _chunks(chosen, points, limit):
                gradients = _gradients(passes, token, chunk, base)
                for index, gradient in gradients.items():
                    share = base[index] * gradient / (len(points) * passes.tokens)
                    scores[index, : layers[index].width] += share.to(home)
                step.advance(sum(len(each) for each in chunk.values()))
    return Attribution(scores, activations, float(clean.probabilities.mean()), clean.predicted)


def _gradients(passes: Passes, token: int, chunk: dict[int, list[float]], base: list[Tensor]) -> dict[int, Tensor]:
    """Block -> ``[width]`` gradients of the probability, summed over the chunk's points of that block."""
    values = {
        index: (torch.tensor(points, dtype=passes.dtype, device=base[index].device)[:, None] * base[index])
        for index, points in chunk.items()
    }
    leaves = {index: value.requires_grad_() for index, value in values.items()}
    with torch.enable_grad():  # whatever mode the caller is in
        logs = passes.log_probabilities(token, leaves)
        gradients = torch.autograd.grad(logs.sum(), list(leaves.values()))
    # dp = p dlog p: the backward pass of a tiny probability would be lost in half precision
    shares = torch.split(logs.detach().exp(), [len(leaf) for leaf in leaves.values()])
    return {
        index: (share.to(gradient)[:, None] * gradient).sum(0)
        for index, gradient, share in zip(leaves, gradients, shares, strict=True)
    }


def _chunks(blocks: Sequence[int], points: list[float], limit: int | None) -> Iterator[dict[int, list[float]]]:
    """All (block, point) pairs in the order of the blocks, at most ``limit`` at a time: block -> points."""
    rows = [(index, point) for index in blocks for point in points]
    size = len(rows) if limit is None else limit
    for start in range(0, len(rows), size):
        chunk: dict[int, list[float]] = {}
        for index, point in rows[start : start + size]:
            chunk.setdefault(index, []).append(point)
        yield chunk
