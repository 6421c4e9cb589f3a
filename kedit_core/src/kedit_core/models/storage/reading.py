"""Reading parameters and buffers wherever they are: marks, values, devices, and whether gradients come through."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kedit_core.errors import UnsupportedModelError
from kedit_core.models.storage.base import is_packed, parts_of, scales_of
from kedit_core.models.storage.finding import storage_of
from kedit_core.models.storage.marks import Fingerprint
from kedit_core.models.storage.names import last_entry
from kedit_core.models.storage.offloaded import Offloaded, offload_of
from kedit_core.models.storage.sharded import is_spread, mark_of_part, whole_of


def repacked(tensor: Tensor, before: Fingerprint, now: Fingerprint) -> bool:
    """Whether the library of a packed weight has exchanged its bytes by itself, as bitsandbytes does at a first run."""
    own = type(tensor) is not nn.Parameter and is_packed(tensor) and parts_of(tensor)[0] is tensor
    return own and before.address != now.address


def mark_of(model: nn.Module, name: str, tensor: Tensor) -> Fingerprint:
    """What is in a parameter or buffer now, without reading it: equal as long as nobody writes to it."""
    if is_spread(tensor):
        return mark_of_part(tensor)
    if tensor.is_meta and (entry := last_entry(model, name)) is not None:
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        if leaf in owner._parameters and (offload := offload_of(model, path)) is not None:
            return Offloaded(owner, leaf, offload).mark()
        held = entry.now()
        return Fingerprint.of(tensor if held is None else held)
    return Fingerprint.of(tensor)


def value_of(model: nn.Module, name: str, tensor: Tensor) -> list[Tensor]:
    """The plain tensors that hold a parameter's or buffer's numbers now: several where it is packed.

    Of a weight that is spread over processes the whole one, which every process has to ask for.
    """
    if is_spread(tensor):
        return [whole_of(tensor)]
    if tensor.is_meta and (entry := last_entry(model, name)) is not None:
        held = entry.now()
        return [(entry.from_file() if held is None else held).to("cpu", tensor.dtype)]
    parts = parts_of(tensor)
    if len(parts) > 1 or not is_packed(tensor):
        return parts
    return parts + scales_of(model.get_submodule(name.rpartition(".")[0]), tensor)


def stops_gradients(model: nn.Module) -> str | None:
    """The first packed layer that no gradient comes through, one of each class being tried; None when all let it pass.

    Such a layer gives no error: what is optimised through it would only be wrong. (bitsandbytes' 4-bit layers are so on
    some CPUs.) Their own forward is run once without a gradient first, since it may repack them.
    """
    tried: set[type[nn.Module]] = set()
    dtype = next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)
    for path, module in model.named_modules():
        weight = module._parameters.get("weight")
        width = getattr(module, "in_features", None)
        if weight is None or type(module) in tried or not isinstance(width, int):
            continue
        if type(weight) is nn.Parameter and not is_packed(weight):
            continue
        if weight.is_meta or is_spread(weight):
            continue
        tried.add(type(module))
        with torch.no_grad():
            module.forward(torch.ones(1, width, dtype=dtype, device=weight.device))
        with torch.enable_grad():
            value = torch.ones(1, width, dtype=dtype, device=weight.device, requires_grad=True)
            out = module.forward(value).float().square().sum()
            back = torch.autograd.grad(out, value, allow_unused=True)[0] if out.requires_grad else None
        if back is None or not bool(back.any()):
            return str(path)
    return None


def device_of(model: nn.Module, name: str, tensor: Tensor) -> torch.device:
    """Where the module of a parameter computes, also when the parameter is offloaded."""
    if tensor.is_meta and (offload := offload_of(model, name.rpartition(".")[0])) is not None:
        return offload.device
    return tensor.device


def matrix_of(model: nn.Module, name: str) -> Tensor:
    """A parameter's numbers, as stored: the parameter itself, or, of an offloaded one, its value in the map of weights.

    Raises UnsupportedModelError for a packed one and for one that is spread over several processes.
    """
    storage = storage_of(model, name)
    if storage.kind == "plain":
        return storage.parameter
    if storage.kind == "offloaded":
        return storage.read(storage.hold())
    how = "stored packed" if storage.kind == "packed" else "spread over several processes"
    raise UnsupportedModelError(
        f"{name!r} is {how} ({type(storage.owner).__name__}), and its numbers are needed; load the model unquantised, "
        "in one process"
    )
