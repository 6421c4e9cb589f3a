"""A training's moving parts as tensors and JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kedit_core.errors import InputError, MethodError
from kedit_core.training.base import BaseTrainer

_PARAMETER, _BUFFER, _OPTIMIZER = "parameter.", "buffer.", "optimizer."
_PLAIN = (bool, int, float, str, type(None))


def editor_tensors(trainer: BaseTrainer[Any]) -> dict[str, Tensor]:
    """Parameters and buffers, copied to the CPU."""
    named = {
        **{f"{_PARAMETER}{name}": tensor for name, tensor in trainer.parameters().items()},
        **{f"{_BUFFER}{name}": tensor for name, tensor in trainer.buffers().items()},
    }
    # clones: two names may share a storage, which a safetensors file may not
    return {name: tensor.detach().cpu().clone() for name, tensor in named.items()}


def put_editor(trainer: BaseTrainer[Any], tensors: Mapping[str, Tensor]) -> None:
    """Write parameters and buffers that :func:`editor_tensors` gave. Raises InputError when they do not fit."""
    with torch.no_grad():
        for kind, held in ((_PARAMETER, trainer.parameters()), (_BUFFER, trainer.buffers())):
            for name, tensor in held.items():
                saved = tensors.get(f"{kind}{name}")
                if saved is None or saved.shape != tensor.shape:
                    raise InputError(
                        f"the checkpoint has no {kind[:-1]} {name} of shape {list(tensor.shape)}; train anew"
                    )
                tensor.copy_(saved)


def optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state: tensors, and JSON of its numbers and of its groups' settings.

    Raises MethodError for state that is neither.
    """
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER}{key}.{name}"] = value.detach().cpu().clone()
            elif isinstance(value, _PLAIN):
                plain.setdefault(name, {})[key] = value
            else:
                raise MethodError(f"the optimiser keeps a {type(value).__name__} as {key!r}, which no checkpoint holds")
    groups = [
        {key: value for key, value in group.items() if key != "params" and isinstance(value, _PLAIN)}
        for group in optimizer.param_groups
    ]
    return tensors, {"numbers": plain, "groups": groups}


def put_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> None:
    """Write what :func:`optimizer_state` gave."""
    for name, parameter in parameters.items():
        held: dict[str, Any] = dict(state["numbers"].get(name, {}))
        for full, value in tensors.items():
            key, dot, owner = full.removeprefix(_OPTIMIZER).partition(".")
            if full.startswith(_OPTIMIZER) and dot and owner == name:
                # Adam and its kin keep their step count on the CPU
                held[key] = value.clone() if key == "step" else value.to(parameter.device, copy=True)
        if held:
            optimizer.state[parameter] = held
    for group, saved in zip(optimizer.param_groups, state["groups"], strict=True):
        group.update(saved)
