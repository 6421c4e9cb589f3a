"""Where knowledge neurons are: the MLPs of the stack whose last output goes to the head.

In an encoder-decoder that is the decoder's, since only there is a position that predicts the answer. kedit's adapters
describe the encoder's blocks, so the decoder's MLPs are found by what the encoder's are.
"""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor, nn

from kedit_core.errors import UnsupportedModelError
from kedit_core.forward import ModuleSite
from kedit_core.models import ModelView
from kedit_core.models.parameters import bare, features
from kedit_methods_locate.hparams.kn import Neuron


@frozen(eq=False)
class NeuronLayer:
    """The neurons of one block.

    Attributes:
        site: the activation they are part of: their first ``width`` numbers.
        module: the module that the site is a face of.
        width: how many neurons there are, m.
        size: how many numbers the site has; more than m where gate and up projection are fused.
        weight: name of the down-projection's weight; column i is neuron i's.
    """

    site: ModuleSite
    module: nn.Module
    width: int
    size: int
    weight: str


def neuron_layers(view: ModelView, neuron: Neuron = "post") -> tuple[NeuronLayer, ...]:
    """One for each block, in order.

    Where gate and up projection are fused (Phi-3), ``pre`` is the first half of the output: the gate.

    Raises:
        UnsupportedModelError: the decoder of an encoder-decoder has MLPs of another kind than the encoder.
    """
    found = []
    for index, block in enumerate(view.head_blocks):
        first, down = _projections(view, index, block)
        module = down if neuron == "post" else first
        site = ModuleSite(view.name_of(module), "input" if neuron == "post" else "output")
        width = features(down)[1]
        size = width if neuron == "post" else features(first)[0]
        found.append(NeuronLayer(site, module, width, size, f"{view.name_of(bare(down))}.weight"))
    return tuple(found)


def whole(layer: NeuronLayer, values: Tensor, clean: Tensor) -> Tensor:
    """Activations ``[n, width]`` filled up with what the site holds beside them in the ``clean`` run ``[all]``."""
    if layer.size == layer.width:
        return values
    rest = clean[layer.width :].to(values).expand(len(values), -1)
    return torch.cat([values, rest], dim=1)


def _projections(view: ModelView, index: int, block: nn.Module) -> tuple[nn.Module, nn.Module]:
    """First and down-projection of a block of the predicting stack."""
    if not view.is_encoder_decoder:
        return view.mlp_in(index)[0], view.mlp_out(index)
    like, inside = view.mlp(0), [view.mlp_in(0)[0], view.mlp_out(0)]
    base = view.name_of(like)
    names = [view.name_of(each).removeprefix(base).removeprefix(".") for each in inside]
    # an MLP without a module of its own lies in the block under the same names as in the encoder
    if like is view.mlp_out(0):
        base = view.name_of(view.block(0))
        names = [view.name_of(each).removeprefix(f"{base}.") for each in inside]
        mlps = [block]
    else:
        mlps = [module for module in block.modules() if type(module) is type(like)]
    try:
        (mlp,) = mlps
        first, down = (mlp.get_submodule(name) for name in names)
        features(down)
    except (ValueError, AttributeError) as error:
        raise UnsupportedModelError(
            f"decoder block {index} of this {type(view.model).__name__} has no MLP like the encoder's "
            f"({type(like).__name__}), so its neurons cannot be found"
        ) from error
    return first, down
