"""What an edit would take, told before it is made: the method's own estimates, and the memory there is for them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import frozen
from torch import nn

from kedit_core.editing.context import EditContext
from kedit_core.editing.guard import left_as_found
from kedit_core.editing.rounds import own_settings
from kedit_core.errors import PluginError
from kedit_core.hparams import HyperParams


@frozen
class _Kind:
    what: str
    fits: Callable[[Any], bool]


def _texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


def _count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


_KINDS: Mapping[str, _Kind] = {
    "places": _Kind("a list of names", _texts),
    "seconds": _Kind("a number of seconds", _number),
    "memory_bytes": _Kind("a whole number of bytes", _count),
    "patch_bytes": _Kind("a whole number of bytes", _count),
    "notes": _Kind("a list of sentences", _texts),
}


def plan_faults(told: Mapping[str, Any]) -> list[str]:
    """What is wrong with the answer of a ``plan`` hook, in a few words each; empty when nothing is."""
    unknown = [f"{key!r} is no key of a plan (known: {', '.join(_KINDS)})" for key in told if key not in _KINDS]
    wrong = [
        f"{key} is {told[key]!r}, not {kind.what}"
        for key, kind in _KINDS.items()
        if told.get(key) is not None and not kind.fits(told[key])
    ]
    return unknown + wrong


def what_it_takes(context: EditContext, hparams: HyperParams) -> dict[str, Any]:
    """What the method tells of the edit of ``context.requests``, and the memory there is.

    ``places``, ``seconds``, ``memory_bytes`` and ``patch_bytes`` are None where it does not tell.

    Raises:
        MethodError: the method changed the model.
        PluginError: it told something that is no plan.
    """
    told = _told(context, hparams)
    return {**told, **memory(context.model, told["memory_bytes"])}


def _told(context: EditContext, hparams: HyperParams) -> dict[str, Any]:
    name = context.method.name if context.method else None
    with own_settings(context), left_as_found(context.model, f"method {name!r} (plan)"):
        told = context.host.plan(context, context.requests, hparams) or {}
    if faults := plan_faults(told):
        distribution = context.method_distribution or "(unknown distribution)"
        raise PluginError(
            f"method {name!r} of {distribution} made a plan in which {'; '.join(faults)}",
            plugin=str(name),
            distribution=distribution,
            hook="plan",
        )
    # tuples as lists, as JSON has them
    plan = {key: list(value) if isinstance(value := told.get(key), tuple) else value for key in _KINDS}
    return {**plan, "notes": plan["notes"] or []}


def memory(model: nn.Module, wanted: int | None) -> dict[str, Any]:
    """The model's own bytes, the device most of it is on, what is free there, and whether ``wanted`` bytes fit.

    ``available_bytes`` and ``fits`` are None where nobody can tell.
    """
    device = _device(model)
    free = _free(device)
    return {
        "model_bytes": sum(size for _, size in _sizes(model)),
        "device": str(device),
        "available_bytes": free,
        "fits": None if wanted is None or free is None else wanted <= free,
    }


def _sizes(model: nn.Module) -> list[tuple[torch.device, int]]:
    tensors = [*model.parameters(), *model.buffers()]
    return [(tensor.device, tensor.numel() * tensor.element_size()) for tensor in tensors]


def _device(model: nn.Module) -> torch.device:
    """Where most bytes of the model are."""
    share: Counter[torch.device] = Counter()
    for device, size in _sizes(model):
        share[device] += size
    return share.most_common(1)[0][0] if share else torch.device("cpu")


def _free(device: torch.device) -> int | None:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # what torch holds and does not use is free for us
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "cpu":
        import psutil

        return int(psutil.virtual_memory().available)
    return None
