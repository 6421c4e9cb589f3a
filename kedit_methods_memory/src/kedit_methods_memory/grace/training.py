"""Training of values: what the projection should give at the chosen token, so that the model says the target.

Hartvigsen et al. 2023, section 3.2; specification: GRACE, "Edit procedure", step 3. Each value is trained on its own
prompt, with its own key firing whatever the others hold, so values of different keys do not touch each other and are
rows of one parameter: Adam acts on each element alone. Edits of one key are trained one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.editing import progress
from kedit_core.errors import MethodError
from kedit_core.forward import ForwardTools, Part
from kedit_methods_memory.facts import Fact
from kedit_methods_memory.hparams.grace import GraceHyperParams
from kedit_methods_memory.projections import Projection
from kedit_methods_memory.questions import Questions, grouped
from kedit_methods_memory.resumed import Resumed, changed

_LOOK_EVERY = 16  # steps between two looks at the losses where looking makes the host wait


@frozen(eq=False)
class Trained:
    """Values ``[R, out]`` in the dtype they were trained in, and each fact's loss with them (a list of R)."""

    values: Tensor
    losses: list[float]


def train(
    forward: ForwardTools,
    projection: Projection,
    facts: Sequence[Fact],
    start: Tensor,
    hparams: GraceHyperParams,
    *,
    memory_budget: int | None = None,
    show: progress.Progress = progress.silent,
) -> Trained:
    """Train one value for each fact, in groups that fit ``memory_budget`` bytes; the model is left as found.

    Args:
        start: ``[R, out]`` what the values begin as.

    Raises MethodError when a loss is not finite.
    """
    exact = torch.promote_types(torch.float32, next(iter(projection.module.parameters())).dtype)
    values = start.to(forward.device, exact, copy=True)
    losses = [0.0] * len(facts)
    groups = grouped(forward.view, facts, projection.layer, memory_budget)
    if not hparams.fast:
        groups = [[index] for index in range(len(facts))]
    with show(f"values of {len(facts)} edit{'s' * (len(facts) > 1)}", total=float(len(facts))) as step:
        for group in groups:
            problem = Problem(forward, projection, [facts[i] for i in group], hparams)
            values[group], found = _descend(problem, values[group], hparams)
            for index, loss in zip(group, found, strict=True):
                losses[index] = loss
            step.advance(len(group))
    return Trained(values, losses)


def _descend(problem: Problem, start: Tensor, hparams: GraceHyperParams) -> tuple[Tensor, list[float]]:
    values = start.clone().requires_grad_()
    adam = torch.optim.Adam([values], lr=hparams.edit_lr)
    every = 1 if values.device.type == "cpu" else _LOOK_EVERY
    for step in range(hparams.n_iter):
        with torch.enable_grad():
            losses = problem.losses(values)
            (values.grad,) = torch.autograd.grad(losses.sum(), values)
        if step % every == 0:
            _finite(losses.detach(), step)
        adam.step()
    with torch.no_grad():
        return values.detach(), _finite(problem.losses(values), hparams.n_iter)


def _finite(losses: Tensor, steps: int) -> list[float]:
    found: list[float] = losses.double().tolist()
    for loss in found:
        if not abs(loss) < float("inf"):
            raise MethodError(
                f"the value's loss is {loss} after {steps} steps; lower edit_lr, or run the model in float32"
            )
    return found


class Problem:
    """Losses of some facts as a function of their values ``[R, out]``.

    Where a value is written at one token only and lies on the way into the residual stream, everything below it is run
    once (``forward.tail``, which adds: the difference to the output is added). Otherwise the values are set by hooks in
    a pass from the codebook's block on; with ``fast=False`` in whole passes.
    """

    def __init__(
        self, forward: ForwardTools, projection: Projection, facts: Sequence[Fact], hparams: GraceHyperParams
    ) -> None:
        two_stacks = forward.view.is_encoder_decoder
        late = hparams.compat == "original" and not two_stacks
        self._forward, self._projection = forward, projection
        self._asked = asked = Questions.of(forward, facts, whole=late)
        at = asked.ends + 1 if late else asked.ends
        rows = torch.arange(len(facts), device=at.device)
        self.tail = None
        parts: dict[str, Part] = {"mlp_out": "mlp_out", "attn_out": "attn_out"}
        part = parts.get(projection.part)
        if part is not None and hparams.fast and hparams.replacement == "replace_last" and not late:
            here = torch.stack([rows, at], dim=1)
            self.tail = forward.tail(
                asked.batch, projection.layer, at, asked.cells, parts=(part,), capture=[projection.output], at=here
            )
            self._output = self.tail.captured[projection.output]
            return
        self.resumed = Resumed(forward, asked.batch, projection.layer, asked.cells, hparams.fast)
        columns = torch.arange(asked.batch.width, device=at.device).unsqueeze(0)
        if hparams.replacement == "replace_last":
            where = columns == at.unsqueeze(1)
        elif hparams.replacement == "replace_prompt":
            where = columns < at.unsqueeze(1)
        else:
            where = columns >= 0
        self._cells = where.expand(len(facts), -1).nonzero()

    def losses(self, values: Tensor) -> Tensor:
        """``[R]``; differentiable in the values, never in parameters."""
        if self.tail is not None:
            return self._asked.losses(self.tail.logits(values - self._output.to(values)))
        with changed(self._projection.module, lambda _, output: self._written(values, output)):
            return self._asked.losses(self.resumed.logits())

    def _written(self, values: Tensor, output: Tensor) -> Tensor:
        """The projection's output with the values in their cells."""
        rows, columns = self._cells.to(output.device).unbind(1)
        whole = output.reshape(*self._asked.batch.input_ids.shape, -1)  # some architectures fold rows and columns
        there = values.to(whole.device, whole.dtype)[rows]
        return whole.index_put((rows, columns), there).reshape(output.shape)
