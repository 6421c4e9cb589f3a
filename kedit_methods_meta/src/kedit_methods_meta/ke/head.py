"""What one weight's update is made with: a mask and a shift, each of rank one, and a gate."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn import functional

from kedit_methods_meta.ke.condition import start


@frozen(eq=False)
class Gates:
    """A head's answer to some conditions.

    Attributes:
        mask_column, shift_column: ``[conditions, in]``. mask_row, shift_row: ``[conditions, out]``, each row sums to 1.
        scale: ``[conditions, 1]``, from 0 to ``max_scale``.
    """

    mask_column: Tensor
    mask_row: Tensor
    shift_column: Tensor
    shift_row: Tensor
    scale: Tensor


class WeightNormLinear(nn.Module):
    """``x (g v / |v|)^T + b``: each output's weights as a direction and a length (Salimans and Kingma 2016).

    ``g`` starts as ``|v|``, so that it starts as a plain linear layer.
    """

    def __init__(self, width: int, out: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.zeros(out, width))
        self.bias = nn.Parameter(torch.zeros(out))
        if generator is not None:
            start(self, width**-0.5, generator)
        self.g = nn.Parameter(self._length().detach())

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: ``[..., width]`` -> ``[..., out]``."""
        return functional.linear(hidden, self.g * self.v / self._length(), self.bias)

    def _length(self) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(self.v, dim=1, keepdim=True)
        return length


class Head(nn.Module):
    """From a condition to the :class:`Gates` of one weight.

    ``Delta W = scale * (A * G + B)`` with ``A = mask_row mask_column^T``, ``B = shift_row shift_column^T`` and G the
    gradient, all ``[out, in]`` however the model stores the weight.
    """

    def __init__(
        self, width: int, hidden: int, shape: tuple[int, int], max_scale: float, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.shape, self.max_scale = shape, max_scale
        self.first = WeightNormLinear(width, hidden, generator)
        self.second = WeightNormLinear(hidden, 2 * sum(shape) + 1, generator)

    def forward(self, condition: Tensor) -> Gates:
        """condition: ``[conditions, width]``."""
        answer = self.second(torch.tanh(self.first(condition)))
        width, out = self.shape
        mask_column, mask_row, shift_column, shift_row, gate = answer.split([width, out, width, out, 1], dim=-1)
        return Gates(
            mask_column,
            torch.softmax(mask_row, dim=-1),
            shift_column,
            torch.softmax(shift_row, dim=-1),
            self.max_scale * torch.sigmoid(gate),
        )
