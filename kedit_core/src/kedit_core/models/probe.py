"""Short runs of a model on made-up tokens, in which every module's input and output is kept.

Discovery learns from these what a module does: what it reads, what it mixes, where its output goes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from attrs import define, field, frozen
from torch import Tensor, nn

ROWS, TOKENS, DECODER_TOKENS = 2, 7, 4

Change = Callable[[Tensor], Tensor]


@define(eq=False)
class Call:
    """The first call of a module in a run; ``start`` and ``end`` count the calls and returns of all modules.

    ``input`` and ``output`` are copies of the first float tensor that went in and came out, or None.
    """

    start: int
    end: int = -1
    times: int = 1
    input: Tensor | None = None
    output: Tensor | None = None


@frozen(eq=False)
class Trace:
    """What happened in a run: calls by dotted name, in the order they began, and the logits."""

    calls: Mapping[str, Call]
    logits: Tensor

    def input(self, name: str) -> Tensor | None:
        """What went into a module, as ``[rows, tokens, ...]``; None when it is not of that kind."""
        return self._of(name, "input")

    def output(self, name: str) -> Tensor | None:
        """What came out of a module, as ``[rows, tokens, ...]``; None when it is not of that kind."""
        return self._of(name, "output")

    def _of(self, name: str, side: str) -> Tensor | None:
        value: Tensor | None = getattr(self.calls.get(name), side, None)
        return None if value is None or not _has_tokens(value) else per_token(value)


@frozen(eq=False)
class Probe:
    """Runs of one model, on the same tokens each time.

    Attributes:
        model: in eval mode (see :func:`undisturbed`).
        inputs: arguments of its forward.
        names: dotted name of each of its modules.
    """

    model: nn.Module
    inputs: Mapping[str, Any]
    names: Mapping[nn.Module, str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "names", {module: name for name, module in self.model.named_modules()})

    @classmethod
    def of(cls, model: nn.Module, vocab_size: int, device: torch.device) -> Probe:
        """A probe on random ids that are none of the config's special ones."""
        config: Any = model.config
        special = {value for key, value in config.to_dict().items() if key.endswith("_token_id")}
        plain = torch.tensor([i for i in range(min(vocab_size, 5000)) if i not in special], device=device)
        generator = torch.Generator().manual_seed(0)
        ids = plain[torch.randint(len(plain), (ROWS, TOKENS), generator=generator).to(device)]
        inputs: dict[str, Any] = {"input_ids": ids}
        if getattr(config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = ids[:, :DECODER_TOKENS].flip(0)
        if "use_cache" in inspect.signature(model.forward).parameters:
            inputs["use_cache"] = False
        return cls(model, inputs)

    def run(
        self,
        change_output: Mapping[str, Change] | None = None,
        change_input: Mapping[str, Change] | None = None,
        **inputs: Any,
    ) -> Trace:
        """One forward, with the first tensor that goes into or comes out of some modules changed.

        Raises whatever the model's forward raises; hooks are gone afterwards in any case.
        """
        calls: dict[str, Call] = {}
        clock = iter(range(1 << 62))
        with ExitStack() as hooks:
            for name, change in (change_input or {}).items():
                module = self.model.get_submodule(name)
                handle = module.register_forward_pre_hook(_input_changer(change), with_kwargs=True)
                hooks.callback(handle.remove)
            for name, change in (change_output or {}).items():
                handle = self.model.get_submodule(name).register_forward_hook(_output_changer(change))
                hooks.callback(handle.remove)
            for module, name in self.names.items():
                before, after = _recorders(name, calls, clock)
                hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(after).remove)
            result = self.model(**{**self.inputs, **inputs})
        return Trace(calls, result.logits)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; every module's own mode is as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _recorders(name: str, calls: dict[str, Call], clock: Iterator[int]) -> tuple[Any, Any]:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in calls:
            calls[name].times += 1
        else:
            calls[name] = Call(start=next(clock), input=_copy(_first_input(args, kwargs)))

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if calls[name].end < 0:
            # A copy, since some blocks add to what a module returned in place (Falcon).
            calls[name].end, calls[name].output = next(clock), _copy(_first_output(output))

    return before, after


def _input_changer(change: Change) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        first = _first_input(args, kwargs)

        def swap(value: Any) -> Any:
            return change(value) if first is not None and value is first else value

        return tuple(swap(value) for value in args), {key: swap(value) for key, value in kwargs.items()}

    return hook


def _output_changer(change: Change) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, (tuple, list)):
            return type(output)([change(output[0]), *output[1:]])
        return change(output)

    return hook


def _first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    named = kwargs.get("hidden_states")
    for value in (*args, named, *kwargs.values()):
        if _is_activation(value):
            return value  # type: ignore[no-any-return]
    return None


def _first_output(output: Any) -> Tensor | None:
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        output = output[0] if output else None
    return output if _is_activation(output) else None


def _is_activation(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2


def _copy(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach().clone()


def _has_tokens(value: Tensor) -> bool:
    counts = (TOKENS, DECODER_TOKENS)
    if value.ndim == 2:
        return value.shape[0] in [ROWS * tokens for tokens in counts]
    return value.ndim >= 3 and value.shape[0] == ROWS and value.shape[1] in counts


def per_token(value: Tensor) -> Tensor:
    """``[rows, tokens, ...]``, a view, of what may be ``[rows * tokens, width]``."""
    return value.view(ROWS, -1, value.shape[-1]) if value.ndim == 2 else value
