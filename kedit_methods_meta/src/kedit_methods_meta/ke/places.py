"""Which weights KE edits: all projections of all blocks, or those of some parts of some blocks."""

from __future__ import annotations

import torch
from torch import nn

from kedit_core.errors import InputError
from kedit_core.forward import ForwardTools
from kedit_core.models.parameters import bare, features, is_projection
from kedit_methods_meta.hparams.ke import KeEditorSettings
from kedit_methods_meta.places import Place, places_of

_LARGE = 1_000_000_000  # parameters above which "auto" takes the chosen places


def editable_places(forward: ForwardTools, settings: KeEditorSettings) -> tuple[Place, ...]:
    """The places that the settings name in a model, in its order.

    Raises InputError for blocks or parts that the model does not have, or weights that cannot be changed alone.
    """
    view = forward.view
    everywhere = settings.editable == "all"
    if settings.editable == "auto":
        everywhere = sum(parameter.numel() for parameter in view.model.parameters()) <= _LARGE
    if everywhere:
        return _all_places(forward)
    return places_of(view, settings.parts, settings.layers, settings.decoder_layers)


def _all_places(forward: ForwardTools) -> tuple[Place, ...]:
    view = forward.view
    blocks = {*view.head_blocks, *(view.block(layer) for layer in range(view.num_layers))}
    inside: set[nn.Module] = {bare(each) for block in blocks for each in block.modules() if is_projection(bare(each))}
    found = []
    for module, each in view.model.named_modules():
        if each in inside and not view.aliases(f"{module}.weight"):
            out, width = features(each)
            found.append(Place(view.first_name(f"{module}.weight"), str(module), width, out))
    if not found:
        raise InputError(
            "the blocks of this model have no projections to edit; name parts of them, with editable=chosen"
        )
    encoders = _read_in_encoder(forward, found) if view.is_encoder_decoder else frozenset[str]()
    return tuple(Place(place.name, place.module, place.width, place.out, place.module in encoders) for place in found)


def _read_in_encoder(forward: ForwardTools, places: list[Place]) -> frozenset[str]:
    """Modules that run on the encoder's tokens, some of them in the decoder's blocks (keys and values of what it sees).

    Told by running one prompt of three tokens with an answer of one.
    """
    pad = forward.boundary.pad_id
    batch = forward.batch([[pad] * 3], targets=[[pad]])
    sites = [place.input for place in places]
    cells = torch.tensor([[0, 0]], device=forward.device)
    run = forward.run(batch, capture=sites, logits_at=cells)
    seen = {place.module: int(run.activations[place.input].shape[1]) for place in places}
    return frozenset(name for name, width in seen.items() if width == batch.width)
