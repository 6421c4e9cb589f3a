"""How a model's parameters are stored: layout, sizes, tied names. Needs no adapter."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D

from kedit_core.errors import InputError
from kedit_core.models.adapter import Layout
from kedit_core.models.storage import names_by_parameter


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module a parameter belongs to, and its name in there.

    Raises:
        InputError: the model has no such parameter.
    """
    path, _, leaf = name.rpartition(".")
    try:
        owner = model.get_submodule(path)
    except AttributeError:
        owner = None
    if owner is None or leaf not in owner._parameters:
        raise InputError(f"{type(model).__name__} has no parameter {name!r}; names are those of named_parameters()")
    return owner, leaf


def layout_of(model: nn.Module, name: str) -> Layout:
    """How a parameter's two axes are stored, told by its owner's class and never by its shape (weights may be square).

    ``out_in`` for the weight of a Linear or an Embedding, ``in_out`` for that of a GPT-2 Conv1D, ``as_stored`` for the
    rest: biases, norms, fused experts.

    Raises:
        InputError: the model has no such parameter.
    """
    owner, leaf = owner_of(model, name)
    if leaf != "weight":
        return "as_stored"
    if isinstance(owner, Conv1D):
        return "in_out"
    return "out_in" if isinstance(owner, (nn.Linear, nn.Embedding)) else "as_stored"


def aliases_of(model: nn.Module, name: str) -> tuple[str, ...]:
    """The other names of a tied parameter, in the order of ``named_parameters``; empty when it is not tied.

    Raises:
        InputError: the model has no such parameter.
    """
    owner, leaf = owner_of(model, name)
    names = names_by_parameter(model)[id(owner._parameters[leaf])]
    return tuple(other for other in names if other != name)


def first_name_of(model: nn.Module, name: str) -> str:
    """The first name of a parameter, which patches use; the same one unless it is tied.

    Raises:
        InputError: the model has no such parameter.
    """
    owner, leaf = owner_of(model, name)
    return names_by_parameter(model)[id(owner._parameters[leaf])][0]


def bare(module: nn.Module) -> nn.Module:
    """The projection itself where peft has put a layer around it."""
    while not is_projection(module) and isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    return module


def is_projection(module: nn.Module) -> bool:
    """Whether it is a linear map whose weight kedit can read: Linear, its descendants, or Conv1D."""
    return isinstance(module, (nn.Linear, Conv1D))


def features(module: nn.Module) -> tuple[int, int]:
    """Sizes (out, in) of a projection, from its class and not from its weight, which may be packed.

    Raises:
        InputError: it is not a projection.
    """
    module = bare(module)
    if isinstance(module, Conv1D):
        return int(module.nf), int(module.nx)
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    raise InputError(f"{type(module).__name__} is neither a Linear nor a Conv1D, so its sizes are not known")
