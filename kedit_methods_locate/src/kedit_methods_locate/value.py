"""The value search: which vector, added to a layer's MLP output at the subject, makes the model say the target.

Meng et al. 2022, section 3.2 (specification: ROME, sections 4.3 and 5). Works on any number of requests at once: the
parameter is ``[R, hidden]``, the loss the sum of the requests' losses, and Adam acts on each element alone, so each
request takes exactly the path it would take by itself; one that is done is frozen with its moments.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.editing import progress
from kedit_core.errors import MethodError
from kedit_core.forward import ForwardTools
from kedit_core.models import ModelView
from kedit_methods_locate.hparams import LocateHyperParams
from kedit_methods_locate.problem import Clean, Problem
from kedit_methods_locate.rows import Rewrite

_BETAS = (0.9, 0.999)
_EPS = 1e-8


@frozen(eq=False)
class Values:
    """What a search found, for R requests in the order given.

    Attributes:
        delta: ``[R, hidden]`` the vector to add; float32, or the model's dtype when that is wider.
        clean: keys and outputs of the unedited layer in each context; ``clean.value`` is v0.
        loss: ``[R]`` total loss with that vector.
        probability: ``[R]`` the target's probability per token then, mean over contexts.
        traces: per request the total loss of each forward pass; one update fewer than entries was made.
    """

    delta: Tensor
    clean: Clean
    loss: Tensor
    probability: Tensor
    traces: tuple[tuple[float, ...], ...]


class RowAdam:
    """Adam on the rows of a matrix, of which some are left alone. Same arithmetic as ``torch.optim.Adam``."""

    def __init__(self, like: Tensor, lr: float) -> None:
        self.lr = lr
        self.mean = torch.zeros_like(like)
        self.square = torch.zeros_like(like)
        self.steps = 0

    def step(self, values: Tensor, gradient: Tensor, active: Tensor) -> Tensor:
        """``values`` ``[R, width]`` after a step of the ``active`` ``[R]`` rows; the others and their moments stay."""
        self.steps += 1
        rows = active[:, None]
        first, second = _BETAS
        self.mean = torch.where(rows, self.mean.lerp(gradient, 1 - first), self.mean)
        self.square = torch.where(rows, self.square * second + gradient.square() * (1 - second), self.square)
        scale = (self.square.sqrt() / (1 - second**self.steps) ** 0.5).add_(_EPS)
        moved = values - self.lr / (1 - first**self.steps) * self.mean / scale
        return torch.where(rows, moved, values)

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows only."""
        self.mean, self.square = self.mean[rows], self.square[rows]


def search(
    forward: ForwardTools,
    rewrites: Sequence[Rewrite],
    layer: int,
    settings: LocateHyperParams,
    *,
    memory_budget: int | None = None,
    show: progress.Progress = progress.silent,
) -> Values:
    """Find the vectors of all requests, in groups of similar length that fit ``memory_budget`` bytes.

    Parameters of the model take no gradient, and all is left as found. Memory: the activations behind ``layer`` of one
    group, with their gradients.

    Raises MethodError when a loss is not finite.
    """
    found: list[Values] = []
    order: list[int] = []
    groups = grouped(forward.view, rewrites, layer, memory_budget)
    with show(f"values of {len(rewrites)} request{'s' * (len(rewrites) > 1)}", total=float(len(rewrites))) as step:
        for group in groups:
            found.append(_search_group(forward, [rewrites[i] for i in group], layer, settings))
            order += group
            step.advance(len(group))
    back = torch.argsort(torch.tensor(order)).to(found[0].delta.device)
    traces = [trace for values in found for trace in values.traces]
    return Values(
        delta=torch.cat([v.delta for v in found])[back],
        clean=Clean(torch.cat([v.clean.keys for v in found])[back], torch.cat([v.clean.outputs for v in found])[back]),
        loss=torch.cat([v.loss for v in found])[back],
        probability=torch.cat([v.probability for v in found])[back],
        traces=tuple(traces[i] for i in back.tolist()),
    )


def _search_group(
    forward: ForwardTools, rewrites: Sequence[Rewrite], layer: int, settings: LocateHyperParams
) -> Values:
    problem = Problem(forward, rewrites, layer, settings)
    clean = problem.clean
    delta = torch.zeros_like(clean.value, dtype=problem.dtype)
    limit = None if settings.clamp_norm_factor is None else settings.clamp_norm_factor * _norm(clean.value.to(delta))
    loss, probability = torch.zeros_like(delta[:, 0]), torch.zeros_like(delta[:, 0])
    traces: list[list[float]] = [[] for _ in rewrites]
    adam = RowAdam(delta, settings.v_lr)
    here = torch.arange(len(rewrites), device=delta.device)  # requests that the problem holds
    active = torch.ones_like(here, dtype=torch.bool)  # of these, the ones not done
    for step in range(settings.v_num_grad_steps):
        last = step == settings.v_num_grad_steps - 1
        with torch.set_grad_enabled(not last):  # whatever mode the caller is in
            parameter = delta[here].requires_grad_(not last)
            losses = problem.losses(parameter)
            each = losses.total
            total = each.detach()
        going = here[active]
        loss[going] = total[active]
        probability[going] = losses.probability.detach()[active]
        _note(traces, going.tolist(), loss[going].tolist())
        active = active & (total >= settings.early_stop_loss)
        if last or not bool(active.any()):
            break
        # a request that is done gets a zero, so its row of the gradient is zero too
        (gradient,) = torch.autograd.grad(each, parameter, grad_outputs=active.to(each.dtype))
        moved = adam.step(parameter.detach(), gradient, active)
        delta[here] = moved if limit is None else torch.where(active[:, None], _clamped(moved, limit[here]), moved)
        if int(active.sum()) * 2 <= len(here):
            # most are done: going on with the rest alone costs one pass and saves the others' share of every other
            adam.keep(active)
            base = None if problem.base is None else problem.base[active]
            here, active = here[active], active[active]
            rest = Clean(clean.keys[here], clean.outputs[here])
            problem = Problem(forward, [rewrites[i] for i in here.tolist()], layer, settings, rest)
            problem.base = base
    return Values(delta, clean, loss, probability, tuple(tuple(trace) for trace in traces))


def _note(traces: list[list[float]], requests: list[int], losses: list[float]) -> None:
    for request, value in zip(requests, losses, strict=True):
        traces[request].append(value)
        if not value < float("inf"):
            raise MethodError(
                f"the value search's loss is {value} after {len(traces[request]) - 1} steps; lower v_lr, set "
                "clamp_norm_factor, or run the model in float32 or bfloat16"
            )


def _norm(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    return norms


def _clamped(rows: Tensor, limit: Tensor) -> Tensor:
    """Rows ``[R, width]`` longer than ``limit`` ``[R]`` scaled to it; Adam's moments are not touched by this."""
    norms = _norm(rows)
    return torch.where((norms > limit)[:, None], rows * (limit / norms)[:, None], rows)


def grouped(view: ModelView, rewrites: Sequence[Rewrite], layer: int, memory_budget: int | None) -> list[list[int]]:
    """Requests in groups that fit the budget, those with equally many tokens after the subject together."""

    def likeness(index: int) -> tuple[int, int]:
        return _behind(rewrites[index]), max(len(row.ids) for row in rewrites[index].rows)

    order = sorted(range(len(rewrites)), key=likeness)
    groups: list[list[int]] = []
    used = 0
    for index in order:
        need = bytes_needed(view, rewrites[index], layer)
        if not groups or (memory_budget is not None and used + need > memory_budget):
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += need
    return groups


def _behind(rewrite: Rewrite) -> int:
    """Tokens of a row from the one that is written on."""
    return max(len(row.ids) - row.index for row in rewrite.rows) + len(rewrite.target) - 1


def bytes_needed(view: ModelView, rewrite: Rewrite, layer: int) -> int:
    """Roughly what one request's search needs: activations and gradients of the blocks behind, prefix, logits."""
    rows = len(rewrite.rows) + 1
    width, inner = view.hidden_size, view.mlp_size(layer)
    blocks = view.num_layers - layer
    tail = rows * _behind(rewrite) * blocks * (16 * width + 5 * inner)
    prefix = rows * max(len(row.ids) for row in rewrite.rows) * blocks * 2 * width
    logits = (rows * len(rewrite.target)) * view.vocab_size * 4
    return 4 * (tail + prefix + logits)
