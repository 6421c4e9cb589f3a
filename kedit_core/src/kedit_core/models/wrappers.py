"""The transformers model inside of what a user hands over."""

from __future__ import annotations

from torch import nn

from kedit_core.errors import UnsupportedModelError

# What torch calls the module inside of its own wrappers (compile; DataParallel and its kin).
_INSIDE = ("_orig_mod", "module")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, or the one inside of a peft wrapper; adapters injected into it stay where they are.

    Raises:
        UnsupportedModelError: not a transformers model; when one is inside, the message says where.
    """
    if callable(get_base_model := getattr(model, "get_base_model", None)):
        inner = get_base_model()
        if isinstance(inner, nn.Module) and inner is not model:
            return unwrapped(inner)
    for name in _INSIDE:
        if _is_transformers_like(inner := getattr(model, name, None)):
            raise UnsupportedModelError(
                f"the model is wrapped in {type(model).__name__}, which hooks and weights cannot be followed through; "
                f"pass the {type(inner).__name__} inside of it (model.{name})"
            )
    if not _is_transformers_like(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a transformers model: it has no config; pass a PreTrainedModel"
        )
    return model


def architecture_of(model: nn.Module) -> str:
    """The name of a model's class, which patches record: of the model's own, where FSDP has derived one from it."""
    kinds = type(model).__mro__
    derived = next((place for place, kind in enumerate(kinds) if kind.__name__ == "FSDPModule"), -1)
    return kinds[derived + 1].__name__


def _is_transformers_like(model: object) -> bool:
    return isinstance(model, nn.Module) and getattr(model, "config", None) is not None
