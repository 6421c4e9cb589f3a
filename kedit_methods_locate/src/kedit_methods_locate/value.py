"""The value search: which vectors, added to a layer's outputs at the subject, make the model say the target.

ROME adds one to the MLP's output, MEMIT to the block's, PMET one each to the outputs of the MLP's and the attention's
projections (Meng et al. 2022, section 3.2; 2023, section 4.2; Li et al. 2024, section 3.2. Specification: ROME,
sections 4.3 and 5; MEMIT and PMET, section 2). Works on any number of requests at once: the parameter is
``[R, parts, hidden]``, the loss the sum of the requests' losses, and Adam acts on each element alone, so each request
takes exactly the path it would take by itself; one that is done is frozen with its moments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.editing import progress
from kedit_core.forward import ForwardTools, Part
from kedit_methods_locate.descent import GreedySchedule, Log, RowAdam, choose, clamped, norm
from kedit_methods_locate.grouping import bytes_needed, grouped
from kedit_methods_locate.hparams import LocateHyperParams
from kedit_methods_locate.problem import Clean, Problem, only
from kedit_methods_locate.rows import Rewrite

__all__ = ["Clean", "GreedySchedule", "Values", "bytes_needed", "search"]

# An accelerator runs ahead of the host, which waits for it only at every so manieth pass; what it does in vain when all
# requests were done before is cheaper than waiting each time. Results are the same: requests that are done are frozen.
_LOOK_EVERY = 4


@frozen(eq=False)
class Values:
    """What a search found, for R requests in the order given.

    Attributes:
        deltas: part -> ``[R, hidden]`` the vector to add; float32, or the model's dtype when that is wider.
        clean: keys and outputs of the unedited layer in each context.
        loss: ``[R]`` total loss with those vectors.
        probability: ``[R]`` the target's probability per token then, mean over contexts.
        traces: per request the total loss of each forward pass; one update fewer than entries was made.
        factors: per request the weight of the target's likelihood in each forward pass.
    """

    deltas: Mapping[Part, Tensor]
    clean: Clean
    loss: Tensor
    probability: Tensor
    traces: tuple[tuple[float, ...], ...]
    factors: tuple[tuple[float, ...], ...]

    @property
    def delta(self) -> Tensor:
        """``[R, hidden]`` the vector of the only part."""
        return self.deltas[only(self.deltas)]

    @property
    def targets(self) -> Mapping[Part, Tensor]:
        """Part -> ``[R, hidden]`` what its output should be in the bare prompt: the clean value and the vector."""
        return {part: self.clean.value_of(part).to(delta) + delta for part, delta in self.deltas.items()}


def search(
    forward: ForwardTools,
    rewrites: Sequence[Rewrite],
    layer: int,
    settings: LocateHyperParams,
    *,
    parts: Sequence[Part] = ("mlp",),
    loss_layer: int | None = None,
    schedule: GreedySchedule | None = None,
    memory_budget: int | None = None,
    show: progress.Progress = progress.silent,
) -> Values:
    """Find the vectors of all requests, in groups of similar length that fit ``memory_budget`` bytes.

    Parameters of the model take no gradient, and all is left as found. Memory: the activations behind ``layer`` of one
    group, with their gradients.

    Args:
        forward: tools of the model; ``forward.fast`` chooses the path.
        rewrites: the requests.
        layer: block that is written into.
        settings: steps, rate, weights of the loss, clamp.
        parts: to whose outputs a vector is added. Each has a decay and a clamp by its own clean value; one Adam moves
            all.
        loss_layer: block after which the target's likelihood is read (``layer``, where it lies before that); None for
            the last. The essence is always read after the last.
        schedule: PMET's control flow; None for ROME's and MEMIT's.
        memory_budget: bytes of one group; None for one group.
        show: told of each group.

    Raises MethodError when a loss is not finite, InputError for a ``loss_layer`` the model does not have.
    """
    found: list[Values] = []
    order: list[int] = []
    groups = grouped(forward.view, rewrites, layer, memory_budget)
    with show(f"values of {len(rewrites)} request{'s' * (len(rewrites) > 1)}", total=float(len(rewrites))) as step:
        for group in groups:
            mine = [rewrites[i] for i in group]
            problem = Problem(forward, mine, layer, settings, parts, loss_layer)
            found.append(_descend(problem, settings, schedule))
            order += group
            step.advance(len(group))
    return _joined(found, order)


def _joined(found: Sequence[Values], order: Sequence[int]) -> Values:
    """Values of several groups as one, in the order of the requests; ``order`` says which request each is of."""
    back = torch.argsort(torch.tensor(order))
    there = back.to(found[0].loss.device)

    def sorted_back(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors))[there]

    traces = [trace for values in found for trace in values.traces]
    factors = [each for values in found for each in values.factors]
    parts = found[0].deltas
    return Values(
        deltas={part: sorted_back([v.deltas[part] for v in found]) for part in parts},
        clean=Clean(
            sorted_back([v.clean.keys for v in found]),
            {part: sorted_back([v.clean.outputs[part] for v in found]) for part in parts},
        ),
        loss=sorted_back([v.loss for v in found]),
        probability=sorted_back([v.probability for v in found]),
        traces=tuple(traces[i] for i in back.tolist()),
        factors=tuple(factors[i] for i in back.tolist()),
    )


def look_every(device: torch.device) -> int:
    """How many passes are made between two looks at the losses."""
    return 1 if device.type == "cpu" else _LOOK_EVERY


def _descend(problem: Problem, settings: LocateHyperParams, schedule: GreedySchedule | None) -> Values:
    """The vectors of one group. Stops, in this order: loss small enough; the schedule's; the last pass."""
    clean, values, parts = problem.clean, problem.values, problem.parts
    limit = None if settings.clamp_norm_factor is None else settings.clamp_norm_factor * norm(values)
    delta = torch.zeros_like(values)
    loss, probability = torch.zeros_like(delta[:, 0, 0]), torch.zeros_like(delta[:, 0, 0])
    factor = torch.full_like(loss, 1.0 if schedule is None else schedule.factor)
    log, adam, every = Log(len(loss)), RowAdam(delta, settings.v_lr), look_every(delta.device)
    held = list(range(len(loss)))  # requests that the problem holds
    here = torch.arange(len(loss), device=delta.device)  # the same, there
    active = torch.ones_like(here, dtype=torch.bool)  # of these, the ones not done
    for step in range(settings.v_num_grad_steps):
        last = step == settings.v_num_grad_steps - 1
        with torch.set_grad_enabled(not last):  # whatever mode the caller is in
            parameter = delta[here].requires_grad_(not last)
            losses = problem.losses(parameter)
            each = losses.total(factor)
        total, moved = each.detach(), parameter.detach()
        log.note(total, factor, active)
        loss[here] = choose(active, total, loss[here])
        probability[here] = choose(active, losses.probability.detach(), probability[here])
        active = active & (total >= settings.early_stop_loss)
        if schedule is not None:
            factor, done = schedule.judge(problem.greedy(losses), losses.kl.detach())
            active = active & ~done
        left: int | None = None
        if last or step % every == every - 1:
            log.read(held)
            left = int(active.sum())
            if last or left == 0:
                break
        # a request that is done gets a zero, so its row of the gradient is zero too
        (gradient,) = torch.autograd.grad(each, parameter, grad_outputs=active.to(each.dtype))
        moved = adam.step(moved, gradient, active)
        delta[here] = moved if limit is None else choose(active, clamped(moved, limit[here]), moved)
        if left is not None and left * 2 <= len(held):
            # most are done: going on with the rest alone costs one pass and saves the others' share of every other
            adam.keep(active)
            rest = active.nonzero()[:, 0]
            problem = problem.of(rest)
            held, here = [held[i] for i in rest.tolist()], here[rest]
            factor, active = factor[rest], active[rest]
    return Values(
        deltas={part: delta[:, number] for number, part in enumerate(parts)},
        clean=clean,
        loss=loss,
        probability=probability,
        traces=tuple(tuple(trace) for trace in log.losses),
        factors=tuple(tuple(trace) for trace in log.factors),
    )
