"""FT-L's bound: no entry further than epsilon from its anchor, exactly, in the dtype that the model stores.

Zhu et al. 2020 (arXiv 2012.00363), the L-infinity constraint. Specification: fine-tuning, sections 2.5 and 7.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.editing import EditContext
from kedit_core.errors import MethodError
from kedit_core.patches import DenseDelta

_TRIES = 64
_USED_UP = 0.999


@frozen(eq=False)
class Limits:
    """The interval an entry may lie in: ends are numbers of the storage dtype, rounded towards the anchor.

    Attributes:
        anchor, low, high: shape and dtype as stored, low <= anchor <= high.
        epsilon: |value - anchor| never exceeds it.
    """

    anchor: Tensor
    low: Tensor
    high: Tensor
    epsilon: float

    @classmethod
    def around(cls, anchor: Tensor, epsilon: float) -> Limits:
        """The largest interval of numbers that ``anchor``'s dtype has within ``epsilon`` of it."""
        anchor = anchor.detach()
        return cls(anchor, _end(anchor, -epsilon), _end(anchor, epsilon), epsilon)

    def clip(self, master: Tensor) -> None:
        """Bring a master copy (of a dtype at least as wide) into the interval, in place."""
        with torch.no_grad():
            master.clamp_(self.low.to(master.dtype), self.high.to(master.dtype))

    def excess(self, values: Tensor) -> Tensor:
        """By how much each entry is too far from the anchor, signed; 0 where it is not. Float64."""
        moved = values.detach().double() - self.anchor.double()
        return moved.sign() * (moved.abs() - self.epsilon).clamp(min=0)

    def saturated(self, values: Tensor) -> float:
        """Share of the entries that have used up (to a thousandth) all the room that they have; none is not room."""
        anchor, value = self.anchor.double(), values.detach().double()
        room = torch.where(value < anchor, anchor - self.low.double(), self.high.double() - anchor)
        return float(((room > 0) & ((value - anchor).abs() >= _USED_UP * room)).double().mean())

    @property
    def stuck(self) -> float:
        """Share of the entries that cannot move at all: the next number of their dtype is too far."""
        return float((self.low == self.high).double().mean())


def _end(anchor: Tensor, reach: float) -> Tensor:
    wide = anchor.double()
    end = (wide + reach).to(anchor.dtype)
    while bool((outside := (end.double() - wide).abs() > abs(reach)).any()):
        end = torch.where(outside, torch.nextafter(end, anchor), end)
    return end


def settled(
    context: EditContext, operations: Mapping[str, DenseDelta], limits: Mapping[str, Limits]
) -> list[DenseDelta]:
    """The deltas, taken back by a rounding step where the weights they make would lie beyond a limit.

    A weight is formed from the base and the sum of all deltas on it, and that sum rounds too. So the deltas are put on
    through the core's own writer, and what it makes is what is checked.

    Raises MethodError when the limits cannot be kept.
    """
    kept = dict(operations)
    for attempt in range(_TRIES):
        with context.provisional() as writer:
            writer.add(list(kept.values()))
            made = dict(context.model.named_parameters())
            excess = {name: limit.excess(made[name]) for name, limit in limits.items()}
        beyond = {name: each for name, each in excess.items() if bool(each.any())}
        if not beyond:
            return list(kept.values())
        for name, each in beyond.items():
            if context.adapter.layout(name) == "in_out":
                each = each.T
            values = kept[name].values
            back = values.double() - each.cpu() * 2.0**attempt
            # an excess below the delta's own spacing would round away
            closer = torch.where(back.to(values.dtype) == values, _step_back(values, each.cpu()), back.to(values.dtype))
            kept[name] = DenseDelta(name, torch.where(each.cpu() == 0, values, closer))
    raise MethodError(
        f"the norm constraint cannot be kept at {', '.join(beyond)}; use a larger norm_constraint, or run the model in "
        "float32"
    )


def _step_back(values: Tensor, excess: Tensor) -> Tensor:
    return torch.nextafter(values, -excess.sign().to(values.dtype) * torch.inf)
