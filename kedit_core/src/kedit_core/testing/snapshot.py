"""Everything of a model and of the process that a method must leave alone, compared bit by bit."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import torch
from torch import nn

from kedit_core.editing.guard import HOOK_TABLES


class Snapshot:
    """The state of ``model``, of the gradient mode and of the global random generators at one moment."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = weights(model)
        self.identities = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
        self.requires_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self.gradients = {name: parameter.grad is None for name, parameter in model.named_parameters()}
        self.training = {name: module.training for name, module in model.named_modules()}
        self.hooks = {
            name: sum(len(getattr(module, kind)) for kind in HOOK_TABLES) for name, module in model.named_modules()
        }
        self.grad_mode = torch.is_grad_enabled()
        self.generators = _generators()

    def differences(self, model: nn.Module) -> list[str]:
        """What is not as it was, each in a few words; empty when nothing was changed."""
        now = Snapshot(model)
        words = []
        for what, before, after in (
            ("the weights of", self.weights, now.weights),
            ("the Parameter object of", self.identities, now.identities),
            ("requires_grad of", self.requires_grad, now.requires_grad),
            ("the gradient of", self.gradients, now.gradients),
            ("the train/eval mode of", self.training, now.training),
            ("the hooks of", self.hooks, now.hooks),
        ):
            changed = [
                name or "the model itself" for name in {**before, **after} if before.get(name) != after.get(name)
            ]
            if changed:
                more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
                words.append(f"{what} {changed[0]}{more}")
        if self.grad_mode != now.grad_mode:
            words.append("the global gradient mode")
        words += [
            f"the global random state of {name}"
            for name, state in self.generators.items()
            if state != now.generators[name]
        ]
        return words


def weights(model: nn.Module) -> dict[str, str]:
    """SHA-256 of the bytes of every parameter and buffer, by name."""
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    return {name: _digest(tensor) for name, tensor in tensors.items()}


def _digest(tensor: torch.Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()


def _generators() -> dict[str, Any]:
    import numpy

    kind, keys, *rest = numpy.random.get_state()
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "random": random.getstate(),
        "numpy": (kind, bytes(memoryview(keys)), *rest),  # type: ignore[arg-type]
    }
