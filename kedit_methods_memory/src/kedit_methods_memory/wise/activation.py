"""How strongly a side memory reacts to a text: the routing activation, which tells its edits from everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from kedit_core.errors import PatchFormatError, UnsupportedModelError
from kedit_core.models import ModelView

Phi: TypeAlias = Callable[[Tensor], Tensor]

LONG = 100  # tokens; the released code takes the maximum over longer texts

_NAMES = ("hidden_act", "activation_function", "hidden_activation", "dense_act_fn")


def phi_name(view: ModelView) -> str:
    """Name of the activation function in the model's MLPs, as its config has it.

    Raises UnsupportedModelError when the config names none that is known.
    """
    for name in _NAMES:
        found = getattr(view.text_config, name, None)
        if isinstance(found, str) and found in ACT2FN:
            return found
    raise UnsupportedModelError(
        f"the config of this {type(view.model).__name__} names no activation function; set act to 'none', which "
        "measures without it, and choose alpha, beta and gamma for that"
    )


def phi_of(name: str | None) -> Phi | None:
    """The function of that name; None stays None. Raises PatchFormatError for one that transformers does not have."""
    if name is None:
        return None
    if name not in ACT2FN:
        raise PatchFormatError(f"there is no activation function {name!r} in transformers; update it")
    found: Phi = ACT2FN[name]
    return found


def moved(output: Tensor, change: Tensor, phi: Phi | None) -> Tensor:
    """By how much a memory moves the module's output at each token: ``||phi(o + u) - phi(o)||``.

    With ``phi`` None it is ``||u||``, as the paper has it (Wang et al. 2024, section 2.3).

    Args:
        output: ``[..., out]`` what the module gives.
        change: ``[..., out]`` what the memory adds, of the same dtype (float32 or wider).
    """
    difference = change if phi is None else phi(output + change) - phi(output)
    norms: Tensor = torch.linalg.vector_norm(difference, dim=-1)
    return norms


def pooled(norms: Tensor, mask: Tensor, long_max: bool = False) -> Tensor:
    """``[rows]`` mean of ``norms`` ``[rows, columns]`` over the columns of ``mask``; 0 for a row without any.

    ``long_max``: rows of more than 100 such columns get their maximum instead.
    """
    counts = mask.sum(dim=1)
    kept = norms.masked_fill(~mask, 0.0)
    mean = kept.sum(dim=1) / counts.clamp(min=1)
    return torch.where(counts > LONG, kept.amax(dim=1), mean) if long_max else mean
