"""Training a few weights of a model that must come out untouched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kedit_core.errors import InputError
from kedit_core.models.storage import storage_of

_STORED = {"packed": "quantised", "offloaded": "offloaded", "sharded": "spread over several processes"}


class Masters:
    """Float32 copies of a few parameters that an optimiser steps while the model computes in its own dtype.

    A step is: ``loss.backward()``, ``masters.collect()``, ``optimizer.step()``, ``masters.write()``.
    """

    def __init__(self, live: dict[str, nn.Parameter]) -> None:
        self._live = live
        self._base = {name: parameter.data for name, parameter in live.items()}
        self._working = {name: data.clone() for name, data in self._base.items()}
        self._masters = {
            name: data.detach().to(torch.promote_types(torch.float32, data.dtype)).clone().requires_grad_()
            for name, data in self._base.items()
        }

    def __getitem__(self, name: str) -> Tensor:
        return self._masters[name]

    def parameters(self) -> list[Tensor]:
        """The masters, for an optimiser."""
        return list(self._masters.values())

    def collect(self) -> None:
        """Move the gradients of the live parameters to the masters."""
        for name, parameter in self._live.items():
            master = self._masters[name]
            master.grad = None if parameter.grad is None else parameter.grad.to(master.dtype)
            parameter.grad = None

    def write(self) -> None:
        """Round the masters into the live parameters."""
        with torch.no_grad():
            for name, master in self._masters.items():
                self._working[name].copy_(master)

    def delta(self, name: str) -> Tensor:
        """How far a master has moved from the base: float32, shape as stored."""
        return (self._masters[name] - self._base[name].to(self._masters[name].dtype)).detach()

    def _enter(self) -> None:
        for name, parameter in self._live.items():
            parameter.data = self._working[name]

    def _leave(self) -> None:
        for name, parameter in self._live.items():
            parameter.data = self._base[name]


@contextmanager
def trainable(model: nn.Module, places: Sequence[str]) -> Iterator[Masters]:
    """Float32 masters of the parameters named ``places``; afterwards storage, flags and gradients are as before.

    Only these parameters ask for gradients in the body. Memory: two more copies of each place (one in float32).

    Raises:
        InputError: a place the model does not have, or one that is no floating-point tensor in memory.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for place in places:
        if place not in parameters:
            raise InputError(f"the model has no parameter {place!r}; see `kedit models` for what an adapter names")
        if (kind := storage_of(model, place).kind) != "plain":
            raise InputError(
                f"{place} is {_STORED[kind]}, so it cannot be trained; load the model whole, unquantised and in memory"
            )
    flags = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    masters = Masters({place: parameters[place] for place in places})
    try:
        for parameter, _, _ in flags:
            parameter.requires_grad_(False)
        masters._enter()
        for place in places:
            parameters[place].requires_grad_(True)
            parameters[place].grad = None
        yield masters
    finally:
        masters._leave()
        for parameter, flag, grad in flags:
            parameter.requires_grad_(flag)
            parameter.grad = grad
