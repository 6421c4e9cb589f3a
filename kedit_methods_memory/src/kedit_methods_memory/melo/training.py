"""Training one block of MELO's adapters on one batch of edits.

Yu et al. 2024, section 3.2; specification: MELO, "Parameters" and the paragraph on training. Only the batch's own block
acts and only it takes a gradient, so what other blocks hold does not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.errors import MethodError
from kedit_core.forward import ForwardTools
from kedit_methods_memory.facts import Fact
from kedit_methods_memory.hparams.melo import MeloHyperParams
from kedit_methods_memory.projections import Projection
from kedit_methods_memory.questions import Questions, grouped
from kedit_methods_memory.resumed import Resumed, changed


@frozen(eq=False)
class Block:
    """A trained block: for each adapter, in the order of the targets, A ``[in, p]`` and B ``[p, out]``, in the dtype
    they were trained in, on the CPU; and each fact's loss with it."""

    a: tuple[Tensor, ...]
    b: tuple[Tensor, ...]
    losses: tuple[float, ...]


def start(target: Projection, facts: Sequence[Fact], hparams: MeloHyperParams, seed: int) -> tuple[Tensor, Tensor]:
    """A ``[in, p]`` and B ``[p, out]`` of a new block, float32.

    As a slice of the whole A ``[in, R]`` drawn Kaiming-uniform with fan-in R = N p, entries of A are uniform within
    1 / sqrt(R); B is zero. What is drawn depends on seed, target and the batch's requests alone.
    """
    text = " ".join([str(seed), target.name, *(fact.id for fact in facts)])
    drawn = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]))
    bound = float(hparams.blocks * hparams.rank) ** -0.5
    a = (2 * torch.rand(target.width, hparams.rank, generator=drawn) - 1) * bound
    return a, torch.zeros(hparams.rank, target.out)


def train(
    forward: ForwardTools,
    targets: Sequence[Projection],
    facts: Sequence[Fact],
    hparams: MeloHyperParams,
    seed: int,
    *,
    memory_budget: int | None = None,
) -> Block:
    """Train a new block on a batch; the model is left as found.

    The loss is the mean negative log-likelihood over all target tokens of the batch. Raises MethodError when it is not
    finite. Memory: ``16 p (in + out)`` bytes for each target, and the activations of a part of the batch that fits
    ``memory_budget`` bytes.
    """
    parameters: list[tuple[Tensor, Tensor]] = []
    for target in targets:
        place, device = next(iter(target.module.parameters())), forward.view.device(target.module)
        exact = torch.promote_types(torch.float32, place.dtype)
        a, b = (each.to(device, exact).requires_grad_() for each in start(target, facts, hparams, seed))
        parameters.append((a, b))
    flat = [each for pair in parameters for each in pair]
    adam = torch.optim.Adam(flat, lr=hparams.lr)
    problem = Problem(forward, targets, facts, hparams, memory_budget)
    for step in range(hparams.num_iter):
        adam.param_groups[0]["lr"] = hparams.lr * hparams.lr_gamma ** (step // hparams.lr_step)
        adam.zero_grad()
        with torch.enable_grad():
            for _, part in problem.losses(parameters):
                gradients = torch.autograd.grad(part.sum(), flat)
                for parameter, gradient in zip(flat, gradients, strict=True):
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        adam.step()
    losses = [0.0] * len(facts)
    with torch.no_grad():
        for group, part in problem.losses(parameters):
            for index, loss in zip(group, part.double().tolist(), strict=True):
                losses[index] = loss * problem.tokens / len(facts[index].target)
    if not all(abs(loss) < float("inf") for loss in losses):
        raise MethodError(f"the loss is not finite after {hparams.num_iter} steps; lower lr, or set lora_factor to one")
    found = [(a.detach().cpu(), b.detach().cpu()) for a, b in parameters]
    return Block(tuple(a for a, _ in found), tuple(b for _, b in found), tuple(losses))


class Problem:
    """The losses of a batch as a function of its block, a part of the batch at a time."""

    def __init__(
        self,
        forward: ForwardTools,
        targets: Sequence[Projection],
        facts: Sequence[Fact],
        hparams: MeloHyperParams,
        memory_budget: int | None,
    ) -> None:
        self._targets, self._factor = tuple(targets), hparams.factor
        self._facts = facts
        self.tokens = sum(len(fact.target) for fact in facts)
        first = min(hparams.layers, default=0)
        self.groups = grouped(forward.view, facts, first, memory_budget)
        self._asked = [Questions.of(forward, [facts[i] for i in group]) for group in self.groups]
        self.passes = [Resumed(forward, each.batch, first, each.cells, hparams.fast) for each in self._asked]

    def losses(self, parameters: Sequence[tuple[Tensor, Tensor]]) -> Iterator[tuple[list[int], Tensor]]:
        """For each part the numbers of its facts, and ``[facts]`` what they add to the batch's mean loss."""
        for group, asked, run in zip(self.groups, self._asked, self.passes, strict=True):
            with ExitStack() as hooks:
                for target, (a, b) in zip(self._targets, parameters, strict=True):
                    hooks.enter_context(changed(target.module, Adapter(a, b, self._factor)))
                losses = asked.losses(run.logits())
            counts = torch.tensor([len(self._facts[i].target) for i in group], device=losses.device)
            yield group, losses * counts / self.tokens


@frozen(eq=False)
class Adapter:
    """``output + factor * input A B``, computed in the dtype of A and B."""

    a: Tensor
    b: Tensor
    factor: float

    def __call__(self, value: Tensor, output: Tensor) -> Tensor:
        added = self.factor * ((value.to(self.a.dtype) @ self.a) @ self.b)
        return (output.to(added.dtype) + added).to(output.dtype)
