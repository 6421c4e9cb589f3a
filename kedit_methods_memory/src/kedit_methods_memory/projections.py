"""The linear modules that codebooks and adapters hang on, by block and part."""

from __future__ import annotations

from attrs import frozen
from torch import nn

from kedit_core.errors import BaseMismatchError, InputError
from kedit_core.forward import ModuleSite
from kedit_core.models import ModelView
from kedit_core.models.parameters import features


@frozen(eq=False)
class Projection:
    """A linear module of a model.

    Attributes:
        name: dotted.
        layer: the block it is in, of the stack it is in.
        part: ``mlp_in``, ``mlp_out`` or ``attn_out``.
        width, out: sizes of its input and its output.
    """

    name: str
    module: nn.Module
    layer: int
    part: str
    width: int
    out: int

    @property
    def input(self) -> ModuleSite:
        """Where its input is read."""
        return ModuleSite(self.name, "input")

    @property
    def output(self) -> ModuleSite:
        """Where its output is read or written."""
        return ModuleSite(self.name, "output")


def projections(view: ModelView, layer: int, part: str, setting: str = "layer") -> tuple[Projection, ...]:
    """The modules of a part of block ``layer`` of the edited stack: ``mlp_in`` may be two (gate and up).

    Raises InputError, naming the setting, for a block that the model does not have.
    """
    if not 0 <= layer < view.num_layers:
        raise InputError(
            f"{setting} {layer} is not in this model of {view.num_layers} layers (0 to {view.num_layers - 1}); choose "
            f"{setting} among these"
        )
    finder = {"mlp_in": view.mlp_in, "mlp_out": view.mlp_out, "attn_out": view.attn_out}[part]
    found = finder(layer)
    modules = found if isinstance(found, tuple) else (found,)
    return tuple(_projection(view, module, layer, part) for module in modules)


def projection(view: ModelView, layer: int, part: str, setting: str = "layer") -> Projection:
    """The one module of a part of block ``layer``.

    Raises InputError for a block that the model does not have, or a part that is two modules in this model.
    """
    found = projections(view, layer, part, setting)
    if len(found) > 1:
        names = " and ".join(each.name for each in found)
        raise InputError(f"{part} of block {layer} is {names} in this model, and one module is needed; choose mlp_out")
    return found[0]


def decoder_projections(view: ModelView, layer: int, part: str) -> tuple[Projection, ...]:
    """The modules of a part of block ``layer`` of an encoder-decoder's decoder: those with the same names, in an MLP of
    the same class, as in the encoder.

    Raises InputError for a model without decoder blocks of their own, a block that it does not have, or an attention.
    """
    blocks = view.head_blocks
    if not view.is_encoder_decoder or part == "attn_out":
        raise InputError("decoder_layers are for the MLPs of an encoder-decoder; leave them empty for this model")
    if not 0 <= layer < len(blocks):
        raise InputError(
            f"decoder_layers has block {layer}, and this decoder has blocks 0 to {len(blocks) - 1}; choose among these"
        )
    mlp = view.mlp(0)
    above = f"{view.name_of(mlp)}."
    there = [each for each in blocks[layer].modules() if type(each) is type(mlp)]
    found = []
    for one in projections(view, 0, part):
        path = one.name.removeprefix(above)
        if len(there) != 1 or path == one.name:
            raise InputError(
                f"the MLP of block {layer} of this model's decoder was not found; leave decoder_layers empty"
            )
        found.append(_projection(view, there[0].get_submodule(path), layer, part))
    return tuple(found)


def _projection(view: ModelView, module: nn.Module, layer: int, part: str) -> Projection:
    out, width = features(module)
    return Projection(view.name_of(module), module, layer, part, width, out)


def check_widths(kind: str, place: str, module: nn.Module, width: int | None = None, out: int | None = None) -> None:
    """Whether an operation's tensors fit the projection they are for.

    Raises BaseMismatchError when ``place`` is no projection, or takes or gives vectors of another width.
    """
    try:
        gives, takes = features(module)
    except InputError as error:
        raise BaseMismatchError(f"a {kind} is for projections, and {place!r} is none ({error})") from error
    if width not in (None, takes) or out not in (None, gives):
        raise BaseMismatchError(
            f"a {kind} with vectors of {width or takes} in and {out or gives} out was made for another model: "
            f"{place!r} has {takes} in and {gives} out; load the model it was made for"
        )
