"""The losses of T-Patcher, on plain tensors (Huang et al. 2023, section 3.3; sheet section 4).

``z`` is a neuron's input before its activation. Copies of one example give equal values, so they are computed once and
counted as often as there are copies.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kedit_methods_memory.hparams.t_patcher import NOT_USED, Form, MemoryForm

_LARGE = 30.0  # exp of more than 88 is infinite in float32


def edit_loss(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean over tokens of the (label-smoothed) negative log-likelihood.

    Args:
        logits: ``[n, vocabulary]``, any floating dtype; taken in float32 or wider.
        targets: ``[n]`` ids.
        smoothing: eps; the target keeps 1 - eps and every other token gets eps / (V - 1).
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    logprobs = logits.to(wide).log_softmax(-1)
    nll = -logprobs.gather(-1, targets.unsqueeze(-1)).mean()
    if smoothing == 0:
        return nll
    each = smoothing / (logits.shape[-1] - 1)
    return (1 - smoothing - each) * nll - each * logprobs.sum(-1).mean()


def act_loss(z: Tensor, form: Form, margin: float = 0.0, copies: int = 1) -> Tensor:
    """The neurons shall fire on the example.

    Args:
        z: ``[rows, neurons]``, each neuron's input at its own position.
        margin: gamma_a.
        copies: how many equal rows each row stands for.
    """
    return reduced(margin - z, form, copies)


def memory_loss(
    z_memory: Tensor,
    z_rows: Tensor,
    form: MemoryForm,
    margins: tuple[float, float] = (3.0, -3.0),
    *,
    copies: int = 1,
    tiled: bool = False,
) -> Tensor:
    """The neurons shall stay silent on the memory: far below the example, and below a bound.

    Args:
        z_memory: ``[memory, neurons]``.
        z_rows: ``[rows, neurons]``, each neuron's input at its own position of the example.
        margins: gamma_1 of the distance, gamma_2 of the bound.
        copies: how many equal rows each row stands for.
        tiled: count each value of the second loss once for every row, as the authors' code does.
    """
    relative = z_memory.unsqueeze(1) - z_rows.unsqueeze(0) + margins[0]
    absolute = z_memory - margins[1]
    repeats = copies * z_rows.shape[0] if tiled else 1
    return reduced(relative, form.relative, copies) + reduced(absolute, form.absolute, repeats)


def divergence(before: Tensor, after: Tensor) -> Tensor:
    """Mean KL(before || after) of next-token distributions; logits ``[n, vocabulary]`` each."""
    wide = torch.promote_types(after.dtype, torch.float32)
    first, second = before.to(wide).log_softmax(-1), after.to(wide).log_softmax(-1)
    return (first.exp() * (first - second)).sum(-1).mean()


def reduced(exponents: Tensor, form: Form, copies: int = 1) -> Tensor:
    """One loss of many exponents, each of which stands for ``copies`` equal ones; 0 where none is left."""
    values = exponents.flatten()
    if form.kind == NOT_USED:
        return values.new_zeros(())
    if form.kind != "exp":
        values = values[values > 0]
        if not len(values):
            return values.new_zeros(())
    if form.top is None:
        return _shaped(values, form).mean()
    count = min(form.top, len(values) * copies)
    distinct = math.ceil(count / copies)
    largest = _shaped(values.topk(distinct).values, form)  # the largest exponents have the largest exponentials
    last = count - copies * (distinct - 1)
    return (copies * largest[:-1].sum() + last * largest[-1]) / count


def _shaped(values: Tensor, form: Form) -> Tensor:
    return values if form.kind == "margin" else _exp(values)


def _exp(values: Tensor) -> Tensor:
    """exp, going on as its tangent above 30: finite, and still pulling where a clamp would not."""
    low = values.clamp(max=_LARGE)
    return low.exp() * (1 + (values - low))
