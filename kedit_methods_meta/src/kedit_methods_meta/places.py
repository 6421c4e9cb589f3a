"""Which weights an editor changes: the projections of some parts of some blocks, found by what they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from attrs import frozen
from torch import nn

from kedit_core.errors import InputError
from kedit_core.forward import ModuleSite
from kedit_core.models import ModelView
from kedit_core.models.parameters import bare, features
from kedit_methods_meta.hparams.editor import Part


@frozen
class Place:
    """A linear module whose weight is edited.

    Attributes:
        name: of its weight, as patches use it.
        module: its dotted name.
        width, out: sizes of its input and its output.
        encoder: whether it is in an encoder-decoder's encoder.
    """

    name: str
    module: str
    width: int
    out: int
    encoder: bool = False

    @property
    def input(self) -> ModuleSite:
        """Where its input is read."""
        return ModuleSite(self.module, "input")

    @property
    def output(self) -> ModuleSite:
        """Where its output is read or written."""
        return ModuleSite(self.module, "output")

    @property
    def shape(self) -> tuple[int, int]:
        """``(input, output)``: editors share a network between places of equal shape, in this order."""
        return self.width, self.out


def places_of(
    view: ModelView, parts: Sequence[Part], layers: Sequence[int], decoder_layers: Sequence[int] | None = None
) -> tuple[Place, ...]:
    """The places of these parts in these blocks, in the order of the model.

    Args:
        parts: ``mlp_in`` is one module or two (gate and up), ``mlp_gate`` the first of them.
        layers: blocks of the edited stack (an encoder-decoder's encoder); negative ones count from the end.
        decoder_layers: blocks of an encoder-decoder's decoder; None for the same numbers as ``layers``.

    Raises:
        InputError: a block or part that the model does not have, no block at all, or a weight shared with another
            module, which an editor cannot change alone.
    """
    chosen: dict[nn.Module, bool] = {}
    if view.is_encoder_decoder:
        blocks = [view.block(layer) for layer in range(view.num_layers)]
        for layer in _blocks(layers, len(blocks), "layers"):
            chosen.update({module: True for part in parts for module in _modules(view, layer, part)})
        for layer in _blocks(layers if decoder_layers is None else decoder_layers, len(view.head_blocks), "decoder"):
            block = view.head_blocks[layer]
            chosen.update({_alike(block, name): False for part in parts for name in _names(view, part)})
    elif decoder_layers:
        raise InputError("decoder_layers are for encoder-decoder models; name this model's blocks in layers")
    else:
        for layer in _blocks(layers, view.num_layers, "layers"):
            chosen.update({module: False for part in parts for module in _modules(view, layer, part)})
    if not chosen:
        raise InputError("no weight is to be edited; name blocks in layers and parts of them in parts")
    found = []
    for name, module in view.model.named_modules():
        if module in chosen:
            weight = view.first_name(f"{name}.weight")
            if shared := view.aliases(weight):
                raise InputError(f"{weight} is also {shared[0]}, so it cannot be edited alone; choose other layers")
            out, width = features(module)
            found.append(Place(weight, str(name), width, out, chosen[module]))
    return tuple(found)


def _blocks(layers: Sequence[int], count: int, setting: str) -> list[int]:
    found = []
    for layer in layers:
        if not -count <= layer < count:
            raise InputError(
                f"block {layer} is not in this model's stack of {count} (0 to {count - 1}, or -{count} to -1 from the "
                f"end); choose {setting} among these"
            )
        found.append(layer % count)
    return sorted(set(found))


def _modules(view: ModelView, layer: int, part: Part) -> tuple[nn.Module, ...]:
    finders: Mapping[Part, Callable[[], tuple[nn.Module, ...]]] = {
        "mlp_in": lambda: view.mlp_in(layer),
        "mlp_gate": lambda: view.mlp_in(layer)[:1],
        "mlp_out": lambda: (view.mlp_out(layer),),
        "attn_out": lambda: (view.attn_out(layer),),
    }
    return tuple(bare(module) for module in finders[part]())


def _names(view: ModelView, part: Part) -> tuple[str, ...]:
    adapter = view.adapter
    names: Mapping[Part, tuple[str, ...]] = {
        "mlp_in": adapter.mlp_in,
        "mlp_gate": adapter.mlp_in[:1],
        "mlp_out": (adapter.mlp_out,),
        "attn_out": (adapter.attn_out,),
    }
    return names[part]


def _alike(block: nn.Module, template: str) -> nn.Module:
    """The projection of a decoder's block that has the same last name as that of an encoder's."""
    leaf = template.rpartition(".")[2]
    found = [each for name, each in block.named_modules() if name.rpartition(".")[2] == leaf]
    if len(found) != 1:
        raise InputError(
            f"a decoder block of this model has {len(found)} parts called {leaf!r}, so it is not clear what to edit; "
            "choose mlp_in or mlp_out, or set decoder_layers to []"
        )
    return bare(found[0])
