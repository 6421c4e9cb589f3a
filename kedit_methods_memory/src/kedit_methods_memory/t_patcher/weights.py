"""The neurons as ordinary weights: a model whose MLPs hold them, which any tool loads.

The last MLP's first projection gets the keys as rows and its second one the values as columns. So that one size stands
for all blocks, as configs have it, the other MLPs get as many neurons that are silent: all of theirs is zero.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kedit_core.editing import Editor
from kedit_core.errors import UnsupportedModelError
from kedit_core.models import ModelView
from kedit_core.models.parameters import bare, features
from kedit_core.patches import EditPatch, ModuleOperation
from kedit_methods_memory.t_patcher.neurons import KIND, Neurons
from kedit_methods_memory.t_patcher.place import LastMlp, activation_of

_SIZES = ("n_inner", "intermediate_size", "ffn_dim", "d_ff")  # how configs call the MLP's inner size


def with_neurons_as_weights(editor: Editor, patch: EditPatch) -> PreTrainedModel:
    """A copy of the editor's unedited model whose MLPs hold the patch's neurons; ``save_pretrained`` writes it whole.

    The same function as the patch on the model, up to rounding. Only for MLPs of two projections with biases (GPT-2,
    GPT-J, GPT-Neo, GPT-NeoX, OPT), and for neurons with the model's own activation.

    Memory: the copy.

    Raises:
        UnsupportedModelError: MLPs with a gate or without biases, or neurons of another activation.
        InputError: the patch is of another model.
    """
    with editor.stack.suspended():
        model = copy.deepcopy(editor.model)
    view = ModelView(editor.adapter.adapter, model)
    found = [Neurons.of(each) for each in patch.operations if isinstance(each, ModuleOperation) and each.kind == KIND]
    if not found:
        return cast(PreTrainedModel, model)
    _check(view, patch, found)
    last = view.num_layers - 1
    count = sum(len(neurons.bias) for neurons in found)
    for layer in range(view.num_layers):
        into, out = bare(view.mlp_in(layer)[0]), bare(view.mlp_out(layer))
        width, inner = features(out)
        keys, bias = torch.zeros(count, width), torch.zeros(count)
        values = torch.zeros(count, width)
        if layer == last:
            keys, bias, values = (
                torch.cat([getattr(neurons, name) for neurons in found]) for name in ("keys", "bias", "values")
            )
        _widen(into, keys, bias, inputs=False)
        _widen(out, values, None, inputs=True)
    name = next(each for each in _SIZES if hasattr(view.text_config, each))
    setattr(view.text_config, name, inner + count)
    return cast(PreTrainedModel, model)


def _check(view: ModelView, patch: EditPatch, found: list[Neurons]) -> None:
    name = type(view.model).__name__
    place = LastMlp.of(view)
    if view.is_encoder_decoder or not place.simple:
        raise UnsupportedModelError(
            f"the neurons of {name} cannot be weights of its MLP, which is in a decoder of two stacks or rescaled; "
            "keep the patch on the model"
        )
    if len(view.mlp_in(0)) != 1 or features(bare(view.mlp_in(0)[0]))[0] != view.mlp_size(0):
        raise UnsupportedModelError(
            f"the MLP of {name} is gated, so its weights cannot hold neurons without a gate; keep the "
            "patch on the model"
        )
    if getattr(bare(view.mlp_in(0)[0]), "bias", None) is None:
        raise UnsupportedModelError(
            f"the MLP of {name} has no biases, so its weights cannot hold those of the neurons; keep the patch on the "
            "model"
        )
    own = activation_of(view, "model")
    if other := sorted({neurons.activation for neurons in found} - {own}):
        raise UnsupportedModelError(
            f"neurons with {other[0]} cannot be weights of an MLP with {own}; edit with -p activation=model for that"
        )
    place_of = {each for operation in patch.operations for each in getattr(operation, "places", ())}
    if place_of != set(place.places):
        raise UnsupportedModelError(
            f"the patch has neurons at {sorted(place_of)}, and {name} has its last MLP elsewhere"
        )


def _widen(projection: nn.Module, rows: Tensor, bias: Tensor | None, *, inputs: bool) -> None:
    """Append to a projection: outputs (``rows`` of weights, and biases), or with ``inputs`` as many inputs."""
    weight = cast(Tensor, projection.weight).detach()
    stored_in_out = isinstance(projection, Conv1D)
    new = rows.to(weight)
    along = int(stored_in_out != inputs)
    # a row of a Linear's weight is an output, of a Conv1D's an input
    weight = torch.cat([weight, new if along == 0 else new.T], dim=along)
    projection.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        old = cast(Tensor, projection.bias).detach()
        projection.bias = nn.Parameter(torch.cat([old, bias.to(old)]), requires_grad=False)
    size = weight.shape[along]
    if isinstance(projection, Conv1D):
        setattr(projection, "nx" if inputs else "nf", size)
    else:
        setattr(projection, "in_features" if inputs else "out_features", size)
