"""Running a model without leaving a trace on it: modes, gradient flags and hooks are put back exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kedit_core.errors import InputError
from kedit_core.forward.sites import Injection
from kedit_core.models.storage import device_of


class Stop(Exception):
    """Raised inside a forward pass once all that was wanted has been read; never leaves this package."""


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter takes a gradient inside; every ``requires_grad`` flag is as before afterwards, also on errors."""
    learning = [p for p in model.parameters() if p.requires_grad]
    # a run leaves other objects in an offloaded model
    offloaded = {name for name, p in model.named_parameters() if p.is_meta and p.requires_grad}
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        if offloaded:
            for name, parameter in model.named_parameters():
                if name in offloaded:
                    parameter.requires_grad_(True)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside (no dropout); every submodule's own mode is as before afterwards, also on errors."""
    training = [m for m in model.modules() if m.training]
    try:
        for module in training:
            module.training = False  # not .eval(): some modules do more than change the flag
        yield
    finally:
        for module in training:
            module.training = True


def first_tensor(output: Any) -> Tensor:
    """The hidden states of what a module returned: a tensor, or the first entry of a tuple or mapping."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Sequence) and output and isinstance(output[0], Tensor):
        return output[0]
    raise InputError(f"a module returned {type(output).__name__}, in which no hidden states can be told")


def with_first(output: Any, hidden: Tensor) -> Any:
    """The same kind of return value with other hidden states."""
    if isinstance(output, Tensor):
        return hidden
    if isinstance(output, list):
        return [hidden, *output[1:]]
    return (hidden, *output[1:])


def input_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states a module was called with: its first positional argument, or ``hidden_states``."""
    found = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))
    if not isinstance(found, Tensor):
        raise InputError("a module was called without hidden states, so its input cannot be read")
    return found


def with_input(args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with other hidden states."""
    if args:
        return (hidden, *args[1:]), kwargs
    name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
    return args, {**kwargs, name: hidden}


class Taps:
    """Hooks that read and change activations during one forward pass; all removed when the ``with`` block is left.

    Hooks of one site are called in the order in which they were added. ``layout`` is ``(batch, seq)`` of the pass:
    some architectures fold both into one axis inside the MLP, and are unfolded here.
    """

    def __init__(self, layout: tuple[int, int]) -> None:
        self.layout = layout
        self._exit = ExitStack()

    def __enter__(self) -> Taps:
        return self

    def __exit__(self, *exc: object) -> None:
        self._exit.close()

    def change(self, module: nn.Module, side: str, function: Callable[[Tensor], Tensor]) -> None:
        """Replace activations ``[batch, seq, width]`` at a module's input or output by ``function`` of them."""

        def on_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return with_input(args, kwargs, self._apply(function, input_tensor(args, kwargs)))

        def on_output(_: nn.Module, __: Any, output: Any) -> Any:
            return with_first(output, self._apply(function, first_tensor(output)))

        if side == "input":
            handle = module.register_forward_pre_hook(on_input, with_kwargs=True)
        else:
            handle = module.register_forward_hook(on_output)
        self._exit.callback(handle.remove)

    def read(self, module: nn.Module, side: str, function: Callable[[Tensor], None]) -> None:
        """Show ``function`` the activations ``[batch, seq, width]`` at a module's input or output."""

        def on_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            function(self._unfold(input_tensor(args, kwargs)))

        def on_output(_: nn.Module, __: Any, output: Any) -> None:
            function(self._unfold(first_tensor(output)))

        if side == "input":
            handle = module.register_forward_pre_hook(on_input, with_kwargs=True)
        else:
            handle = module.register_forward_hook(on_output)
        self._exit.callback(handle.remove)

    def stop_at(self, module: nn.Module, side: str, ready: Callable[[], bool]) -> None:
        """Raise :class:`Stop` at this module when ``ready`` says so."""

        def check(*_: Any) -> None:
            if ready():
                raise Stop

        handle = module.register_forward_pre_hook(check) if side == "input" else module.register_forward_hook(check)
        self._exit.callback(handle.remove)

    def on_call(self, module: nn.Module, function: Callable[..., Any]) -> None:
        """A plain forward pre-hook with keyword arguments, removed with the rest."""
        self._exit.callback(module.register_forward_pre_hook(function, with_kwargs=True).remove)

    def _unfold(self, x: Tensor) -> Tensor:
        batch, seq = self.layout
        if x.dim() == 2 and x.shape[0] == batch * seq:
            return x.view(batch, seq, x.shape[-1])
        return x

    def _apply(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return function(self._unfold(x)).reshape(x.shape)


def injected(x: Tensor, injection: Injection) -> Tensor:
    """``x`` ``[batch, seq, width]`` with an injection's cells changed; ``x`` itself stays as it is."""
    rows = injection.rows.to(x.device)
    columns = injection.positions.to(x.device)
    values = injection.values.to(device=x.device, dtype=x.dtype)
    if injection.how == "add":
        return x.index_put((rows, columns), values.expand(rows.shape[0], x.shape[-1]), accumulate=True)
    if injection.how == "scale":
        values = values * x[rows, columns]
    return x.index_put((rows, columns), values.expand(rows.shape[0], x.shape[-1]))


def picked(x: Tensor, at: Tensor | None) -> Tensor:
    """``x`` ``[batch, seq, width]`` at cells ``at`` ``[n, 2]``, or all of it."""
    if at is None:
        return x
    where = at.to(x.device)
    return x[where[:, 0], where[:, 1]]


def first_device(model: nn.Module) -> torch.device:
    """Where a model's inputs go: where its first parameter computes (the first that is not empty, if none fills it)."""
    for name, parameter in model.named_parameters():
        device = device_of(model, name, parameter)
        if device.type != "meta":
            return device
    return torch.device("cpu")
