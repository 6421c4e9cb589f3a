"""T-Patcher: one neuron for one mistake, beside the last MLP (Huang et al. 2023)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kedit_methods_memory.t_patcher.method import TPatcher
    from kedit_methods_memory.t_patcher.neurons import NeuronsKind
    from kedit_methods_memory.t_patcher.weights import with_neurons_as_weights

_HOMES = {"TPatcher": "method", "NeuronsKind": "neurons", "with_neurons_as_weights": "weights"}

__all__ = ["NeuronsKind", "TPatcher", "with_neurons_as_weights"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
