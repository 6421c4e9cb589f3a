"""A method must leave the model as it found it; this is where the Editor looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kedit_core.errors import MethodError
from kedit_core.models.storage import Fingerprint, mark_of, repacked, version_of

HOOK_TABLES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class ModelState:
    """What can be compared without reading a weight: storages, versions, flags, modes and hooks (milliseconds)."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._tensors = {name: (tensor, _state(model, name, tensor)) for name, tensor in _tensors(model).items()}
        self._flags = [(name, p.requires_grad, p.grad) for name, p in model.named_parameters()]
        self._modes = [(name, module, module.training) for name, module in model.named_modules()]
        self._hooks = {name: _hooks(module) for name, module in model.named_modules()}
        self._grad_mode = torch.is_grad_enabled()

    def restore_flags(self) -> list[str]:
        """Put modes, gradient flags and added hooks back; what had to be put back, in words."""
        found = []
        for name, module, training in self._modes:
            if module.training != training:
                found.append(f"train/eval mode of {name or 'the model'}")
                module.training = training
        live = dict(self._model.named_parameters(remove_duplicate=False))
        for name, flag, grad in self._flags:
            if (parameter := live.get(name)) is None:
                continue
            if parameter.requires_grad != flag:
                found.append(f"requires_grad of {name}")
                parameter.requires_grad_(flag)
            if parameter.grad is not grad:
                found.append(f"gradient of {name}")
                parameter.grad = grad
        for name, module in self._model.named_modules():
            for kind, known in self._hooks.get(name, {}).items():
                table = getattr(module, kind)
                # what was taken off and put on again, as the stack's own hooks are, has another key
                moved = [hook for key, hook in known.items() if key not in table]
                for key in [key for key in table if key not in known]:
                    if table[key] in moved:
                        moved.remove(table[key])
                        continue
                    found.append(f"a hook on {name or 'the model'}")
                    del table[key]
        if torch.is_grad_enabled() != self._grad_mode:
            found.append("the global gradient mode")
            torch.set_grad_enabled(self._grad_mode)
        return found

    def changed_tensors(self) -> list[str]:
        """Names of parameters and buffers that were replaced or written to."""
        now = _tensors(self._model)
        changed = [name for name in now if name not in self._tensors]
        for name, (tensor, before) in self._tensors.items():
            live = now.get(name)
            # a run leaves another object where a weight is offloaded; there, what fills it counts
            same = live is tensor or (live is not None and live.is_meta and tensor.is_meta)
            if live is None or not same or _differs(before, _state(self._model, name, live), live):
                changed.append(name)
        return changed


@contextmanager
def left_as_found(model: nn.Module, who: str) -> Iterator[None]:
    """Refuse what ``who`` left behind in the model; flags, modes and hooks are put back also when it raises.

    Raises MethodError naming what was changed.
    """
    before = ModelState(model)
    try:
        yield
    except BaseException:
        before.restore_flags()
        raise
    found = before.restore_flags()
    if tensors := before.changed_tensors():
        found = [f"the weights of {name}" for name in tensors[:3]] + found
    if found:
        raise MethodError(
            f"{who} left the model changed ({', '.join(found[:4])}) where it must compute a patch only; "
            "tell its author to run kedit_core.testing's MethodContract"
        )


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def _state(model: nn.Module, name: str, tensor: torch.Tensor) -> Fingerprint | tuple[int, int | None]:
    """What is another once a tensor was written to or given other storage."""
    if type(tensor) in (nn.Parameter, torch.Tensor) and not tensor.is_meta:
        return tensor.data_ptr(), version_of(tensor)
    return mark_of(model, name, tensor)


def _differs(before: Any, after: Any, tensor: torch.Tensor) -> bool:
    if before == after:
        return False
    marks = isinstance(before, Fingerprint) and isinstance(after, Fingerprint)
    return not (marks and repacked(tensor, before, after))


def _hooks(module: nn.Module) -> dict[str, dict[int, Any]]:
    return {kind: dict(getattr(module, kind)) for kind in HOOK_TABLES}
