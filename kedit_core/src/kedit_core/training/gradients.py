"""Gradients of micro-batches: taken for the editor's parameters only, averaged over micro-batches and processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from kedit_core.errors import MethodError
from kedit_core.training.base import Stepped
from kedit_core.training.processes import Processes


class Gradients:
    """The running sum of gradients for named parameters, each micro-batch's divided by ``accumulate``.

    Nothing else gets a gradient, and ``.grad`` is written only while the optimiser steps. Memory: the parameters' size,
    twice while several processes exchange them.
    """

    def __init__(self, parameters: Mapping[str, Tensor], accumulate: int) -> None:
        self.parameters, self._accumulate = dict(parameters), accumulate
        self._sums: dict[str, Tensor] = {}

    def of(self, stepped: Stepped) -> dict[str, Tensor]:
        """A micro-batch's gradients: the method's own, or those of its loss.

        Raises MethodError for a loss without a graph, and for gradients of no parameter or of another shape.
        """
        if stepped.gradients is not None:
            for name, grad in stepped.gradients.items():
                if name not in self.parameters or grad.shape != self.parameters[name].shape:
                    raise MethodError(
                        f"run_step gave a gradient {list(grad.shape)} for {name!r}, which is no such parameter; its "
                        "author must give them by the names and shapes of parameters()"
                    )
            return {name: grad.detach() for name, grad in stepped.gradients.items()}
        if not stepped.total.requires_grad:
            raise MethodError("run_step's loss depends on no parameter of the editor; its author must look into it")
        names = list(self.parameters)
        found = torch.autograd.grad(stepped.total, [self.parameters[name] for name in names], allow_unused=True)
        return {name: grad for name, grad in zip(names, found, strict=True) if grad is not None}

    def add(self, found: Mapping[str, Tensor]) -> None:
        """Count a micro-batch."""
        for name, grad in found.items():
            share = grad.to(self.parameters[name].device) / self._accumulate
            held = self._sums.get(name)
            self._sums[name] = share if held is None else held + share

    def averaged(self, processes: Processes) -> dict[str, Tensor]:
        """The sums' mean over processes, exchanged as one flat tensor; and nothing is summed up any more.

        A parameter that had no gradient anywhere has none here.
        """
        if processes.count > 1:
            flat, names = self.pending(), list(self.parameters)
            present = flat.new_tensor([name in self._sums for name in names])
            # one exchange for all: which parameters have a gradient travels behind the gradients
            both = processes.mean(torch.cat([flat, present]))
            there = [name for name, share in zip(names, both[len(flat) :].tolist(), strict=True) if share > 0]
            found = {name: self._part(both, name) for name in there}
        else:
            found = self._sums
        self._sums = {}
        return found

    @contextmanager
    def given(self, found: Mapping[str, Tensor]) -> Iterator[None]:
        """The gradients where an optimiser looks for them; nothing there afterwards."""
        try:
            for name, grad in found.items():
                self.parameters[name].grad = grad
            yield
        finally:
            for name in found:
                self.parameters[name].grad = None

    # ------------------------------------------------------------------ checkpoints
    @property
    def waiting(self) -> list[str]:
        """Names of the parameters for which something is summed up."""
        return [name for name in self.parameters if name in self._sums]

    def pending(self) -> Tensor:
        """The sums of all parameters one after the other, ``[elements]``; zeros where there is none."""
        dtype = next(iter(self.parameters.values())).dtype
        device = next(iter(self.parameters.values())).device
        for parameter in self.parameters.values():
            dtype = torch.promote_types(dtype, parameter.dtype)
        parts = [
            self._sums.get(name, torch.zeros_like(parameter)).reshape(-1).to(device, dtype)
            for name, parameter in self.parameters.items()
        ]
        return torch.cat([part.detach() for part in parts])

    def restore(self, flat: Tensor, waiting: list[str]) -> None:
        """Go on with what :meth:`pending` and :attr:`waiting` gave."""
        self._sums = {name: self._part(flat, name) for name in waiting}

    def _part(self, flat: Tensor, name: str) -> Tensor:
        start = 0
        for each, parameter in self.parameters.items():
            if each == name:
                part = flat[start : start + parameter.numel()].reshape(parameter.shape)
                return part.to(parameter.device, parameter.dtype, copy=True)
            start += parameter.numel()
        raise MethodError(f"the checkpoint has a gradient for {name!r}, which is no parameter; train anew")


def global_norm(found: Mapping[str, Tensor]) -> float:
    """The 2-norm of all gradients together."""
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g).cpu() for g in found.values()])))


def all_finite(stepped: Stepped, found: Mapping[str, Tensor]) -> bool:
    """Whether losses and gradients of a micro-batch are numbers."""
    return finite_losses(stepped) and all(bool(torch.isfinite(grad).all()) for grad in found.values())


def finite_losses(stepped: Stepped) -> bool:
    """Whether the losses of a micro-batch are numbers."""
    return all(bool(torch.isfinite(loss).all()) for loss in (stepped.total, *stepped.losses.values()))
