"""What the last block knows of some cells, and logits as a function of the neurons.

Nothing behind the last MLP mixes positions, and nothing in front of it depends on the neurons. So q and the residual of
the cells that are asked are read once, and a training step is the neurons, the last norm and the head at these cells
(sheet section 8). The plain path runs the whole model; both give the same logits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from attrs import frozen
from torch import Tensor, nn

from kedit_core.forward import Batch, ForwardTools, ModuleSite, evaluating
from kedit_core.forward import frozen as frozen_parameters
from kedit_core.forward.state import Taps, picked
from kedit_methods_memory.t_patcher.neurons import Neurons
from kedit_methods_memory.t_patcher.place import LastMlp


@frozen(eq=False)
class Asked:
    """Some cells of a batch: ``[n, 2]`` (row, column) pairs, columns of the decoder's input where there is one."""

    batch: Batch
    cells: Tensor


@frozen(eq=False)
class Reading:
    """logits ``[rows, n, vocabulary]`` and queries ``[rows, n, width]`` at the cells; one row unless dropout is on."""

    logits: Tensor
    query: Tensor


class Path(ABC):
    """Logits at some cells with neurons beside the last MLP; differentiable in the neurons, never in the model."""

    def __init__(self, forward: ForwardTools, place: LastMlp, asked: Asked) -> None:
        self.forward, self.place, self.asked = forward, place, asked

    @abstractmethod
    def read(self, neurons: Neurons | None) -> Reading:
        """The logits with these neurons, or as the model stands."""


class Kept(Path):
    """Keeps q, what the block's last norm is given, and what is beside that norm; runs the neurons and what follows.

    With N the norm behind the MLP (nothing in most models) and x its input, the block gives ``rest + N(x + neurons)``.
    """

    def __init__(self, forward: ForwardTools, place: LastMlp, asked: Asked) -> None:
        super().__init__(forward, place, asked)
        inside = ModuleSite(place.block) if place.norm is None else ModuleSite(place.norm, "input")
        whole = ModuleSite(place.block)
        found = forward.run(asked.batch, capture=(place.query, inside, whole), at=asked.cells).activations
        self.query, self.inside = found[place.query], found[inside]
        self.dtype = self.inside.dtype
        view = forward.view
        behind = [] if place.norm is None else [view.model.get_submodule(place.norm)]
        self.parts = nn.ModuleList([*behind, *view.final_norm, view.lm_head])
        with torch.no_grad(), evaluating(self.parts):
            self.rest = found[whole] - self._norm(self.inside)

    def read(self, neurons: Neurons | None) -> Reading:
        """See :class:`Path`."""
        with evaluating(self.parts), frozen_parameters(self.parts):
            inside = self.inside
            if neurons is not None:
                added = neurons(self.query).to(inside.device)
                inside = (inside.to(added.dtype) + added).to(self.dtype)
            hidden = inside if self.place.norm is None else self.rest + self._norm(inside)
            return Reading(self.forward.view.head(hidden).unsqueeze(0), self.query.unsqueeze(0))

    def _norm(self, value: Tensor) -> Tensor:
        if self.place.norm is None:
            return value
        out: Tensor = self.forward.view.model.get_submodule(self.place.norm)(value)
        return out


class Whole(Path):
    """The reference: every reading is a pass of the whole model.

    Args:
        rows: copies of the (one) row; with ``dropout`` they differ, and reading is then in training mode.
    """

    def __init__(self, forward: ForwardTools, place: LastMlp, asked: Asked, *, copies: int = 1) -> None:
        if copies > 1:
            asked = _repeated(asked, copies)
        super().__init__(forward, place, asked)
        self.copies = copies

    def read(self, neurons: Neurons | None, dropout: bool = False) -> Reading:
        """See :class:`Path`; with ``dropout`` the model is in training mode for the length of the pass."""
        forward, place, batch, cells = self.forward, self.place, self.asked.batch, self.asked.cells
        model = forward.view.model
        queries: list[Tensor] = []
        mode = training(model) if dropout else evaluating(model)
        with mode, frozen_parameters(model), forward.following(batch), Taps((batch.rows, batch.width)) as taps:
            taps.read(model.get_submodule(place.read), "input", queries.append)
            if neurons is not None:
                taps.change(model.get_submodule(place.write), "output", lambda out: _plus(out, neurons(queries[-1])))
            output = forward.model(**forward.inputs(batch))
        shape = (self.copies, len(cells) // self.copies, -1)
        return Reading(picked(output.logits, cells).view(shape), picked(queries[-1], cells).view(shape).detach())


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Training mode inside (dropout on); every submodule's own mode is as before afterwards, also on errors."""
    resting = [module for module in model.modules() if not module.training]
    try:
        for module in resting:
            module.training = True
        yield
    finally:
        for module in resting:
            module.training = False


@contextmanager
def own_randomness(seed: int | None) -> Iterator[None]:
    """Torch's global generators seeded for the length of the block, and afterwards as before; None leaves them alone.

    Dropout draws from them and takes no generator of its own.
    """
    if seed is None:
        yield
        return
    accelerator = torch.accelerator.current_accelerator()
    devices = range(torch.accelerator.device_count()) if accelerator is not None else ()
    with torch.random.fork_rng(list(devices), device_type="cuda" if accelerator is None else accelerator.type):
        torch.manual_seed(seed)
        yield


def _plus(before: Tensor, added: Tensor) -> Tensor:
    return (before.to(added.dtype) + added.to(before.device)).to(before.dtype)


def _repeated(asked: Asked, copies: int) -> Asked:
    """The one row several times, and its cells in each of them."""
    batch = asked.batch.select([0] * copies)
    rows = torch.arange(copies).repeat_interleave(len(asked.cells))
    return Asked(batch, torch.stack([rows, asked.cells[:, 1].repeat(copies)], dim=1))
