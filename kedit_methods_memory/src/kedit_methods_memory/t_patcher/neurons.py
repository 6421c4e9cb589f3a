"""The neurons beside an MLP: the kind ``t_patcher.neurons``, and the formula that training shares with it.

``MLP'(q) = MLP(q) + sum_i v_i act(k_i . q + b_i)``: what appending rows to W1 and b1 and columns to W2 does, without
touching either (Huang et al. 2023, equation 4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, silu

from kedit_core.errors import BaseMismatchError, InputError, PatchFormatError
from kedit_core.forward.state import first_tensor, input_tensor, with_first
from kedit_core.models.parameters import bare, features
from kedit_core.patches import LiveContext, ModuleKind, ModuleOperation

KIND = "t_patcher.neurons"

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "relu": relu,
        "gelu": gelu,
        "gelu_tanh": partial(gelu, approximate="tanh"),
        "quick_gelu": lambda z: z * torch.sigmoid(1.702 * z),
        "silu": silu,
    }
)


@frozen(eq=False)
class Neurons:
    """Some neurons. keys ``[n, width]``, bias ``[n]``, values ``[n, width]`` (a neuron's row each)."""

    keys: Tensor
    bias: Tensor
    values: Tensor
    activation: str

    def inputs(self, query: Tensor) -> Tensor:
        """z ``[..., n]`` of queries ``[..., width]``, in the wider of the two dtypes."""
        wide = torch.promote_types(query.dtype, self.keys.dtype)
        return query.to(wide) @ self.keys.to(wide).T + self.bias.to(wide)

    def fired(self, query: Tensor) -> Tensor:
        """act(z) ``[..., n]``."""
        return ACTIVATIONS[self.activation](self.inputs(query))

    def written(self, fired: Tensor) -> Tensor:
        """What the neurons write ``[..., width]``, given what they fired ``[..., n]``."""
        return fired @ self.values.to(fired.dtype)

    def __call__(self, query: Tensor) -> Tensor:
        """What they add to the MLP's output: ``[..., width]`` to ``[..., width]``."""
        return self.written(self.fired(query))

    def to(self, device: torch.device) -> Neurons:
        """The same on another device."""
        return Neurons(self.keys.to(device), self.bias.to(device), self.values.to(device), self.activation)

    def rows(self, kept: Tensor) -> Neurons:
        """Some of them, by number."""
        return Neurons(self.keys[kept], self.bias[kept], self.values[kept], self.activation)

    def operation(self, places: tuple[str, ...]) -> ModuleOperation:
        """As a patch holds them."""
        tensors = {"keys": self.keys, "bias": self.bias, "values": self.values}
        return ModuleOperation(places, KIND, 1, {"activation": self.activation}, tensors)

    @classmethod
    def of(cls, operation: ModuleOperation) -> Neurons:
        """From a patch's operation. Raises PatchFormatError when it does not hold neurons."""
        held, activation = operation.tensors, operation.config.get("activation")
        if set(operation.config) != {"activation"} or not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise PatchFormatError(
                f"{KIND} has the config {dict(operation.config)}, and needs an activation among "
                f"{', '.join(ACTIVATIONS)} and nothing else; the patch was not made by kedit"
            )
        if set(held) != {"keys", "bias", "values"} or not all(t.is_floating_point() for t in held.values()):
            raise PatchFormatError(f"{KIND} holds {sorted(held)}, and needs keys, bias and values as numbers")
        keys, bias, values = held["keys"], held["bias"], held["values"]
        if keys.dim() != 2 or values.shape != keys.shape or bias.shape != keys.shape[:1] or not len(bias):
            raise PatchFormatError(
                f"{KIND} holds keys {list(keys.shape)}, bias {list(bias.shape)} and values {list(values.shape)}, which "
                "must be [n, width], [n] and [n, width] with n at least 1"
            )
        return cls(keys, bias, values, activation)


class NeuronsKind(ModuleKind):
    """Adds the neurons' part to the output of an MLP.

    One place: a module that takes the MLP's input and gives its output. Two places, for blocks without such a module:
    the one whose input is read, and the one whose output is added to, in the order in which they run; what fired is
    then kept in the prompt scope between the two. Nothing is added where nothing fired, so a silent relu neuron leaves
    every bit as it was.
    """

    def __init__(self, operation: ModuleOperation, live: LiveContext) -> None:
        super().__init__(operation, live)
        if len(operation.places) > 2:
            raise PatchFormatError(f"{KIND} is for one module or two, not {len(operation.places)}")
        self.read, self.write = operation.places[0], operation.places[-1]
        neurons = Neurons.of(operation)
        self.neurons = neurons.to(live.device(self.read))
        self.home = live.device(self.write)
        width = neurons.keys.shape[1]
        for place, side in ((self.read, 1), (self.write, 0)):
            if not _passes(live.modules[place], width, side):
                raise BaseMismatchError(
                    f"the patch has neurons of width {width}, and {place!r} does not "
                    f"{'read' if side else 'give'} vectors of that width"
                )
        if not any(width in parameter.shape for parameter in live.modules[self.read].parameters()):
            raise BaseMismatchError(
                f"the patch has neurons of width {width}, and {self.read!r} has nothing of that size"
            )

    @property
    def needs_scope(self) -> bool:
        """Only what fired at one place and is added at another is kept there."""
        return self.read != self.write

    def after(self, place: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any | None:
        """Add, or note what fired for the place that comes later."""
        with torch.autocast(self.home.type, enabled=False):
            if place == self.read:
                fired = self.neurons.fired(input_tensor(args, kwargs))
                if place != self.write:
                    self.live.scope.put(self, self.live.scope.by_row(fired))
                    return None
            else:
                fired = self.live.scope.get(self)
            before = first_tensor(output)
            added = self.neurons.written(fired).reshape(before.shape).to(before.device)
            changed = torch.where(added != 0, (before.to(added.dtype) + added).to(before.dtype), before)
        return with_first(output, changed)

    def to_device(self, devices: Mapping[str, torch.device]) -> None:
        """Follow the modules."""
        self.neurons, self.home = self.neurons.to(devices[self.read]), devices[self.write]


def _passes(module: nn.Module, width: int, side: int) -> bool:
    """Whether a projection gives (side 0) or reads (side 1) this width; of other modules but embeddings yes."""
    inner = bare(module)
    if isinstance(inner, nn.Embedding):
        return False
    try:
        return features(inner)[side] == width
    except InputError:
        return True
