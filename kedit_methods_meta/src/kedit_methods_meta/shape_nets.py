"""What editors of this family are made of: a net for each shape of weight, told which of its weights a row is of."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeAlias

import torch
from attrs import frozen
from torch import Tensor, nn

from kedit_core.models import ModelView
from kedit_methods_meta.factors import Factors
from kedit_methods_meta.hparams.editor import EditorSettings
from kedit_methods_meta.normaliser import Normaliser
from kedit_methods_meta.places import Place, places_of
from kedit_methods_meta.saved_editor import SavedEditor, check_places, described, made_for

Counted: TypeAlias = tuple[Normaliser, tuple[Tensor, Tensor, Tensor]]
"""A normaliser, and the :meth:`Normaliser.summary` of rows that training counts into it."""


class ShapeNet(nn.Module):
    """A net for weights of one shape; it normalises rows ``[R, in + out]`` of factors (if ``normalises``)."""

    normaliser: Normaliser
    normalises: bool = True


@frozen(eq=False)
class Group:
    """Factors of the weights that share a net, one weight after another.

    Attributes:
        net: of their shape. names: of the weights. sizes: rows of each.
        rows: ``[R, in + out]`` inputs beside gradients. mode: ``[R]`` which of the net's weights each row is of.
    """

    net: ShapeNet
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    rows: Tensor
    mode: Tensor


class EditorModule(SavedEditor):
    """Nets by shape, and what is learned beside them. Made without more arguments, its numbers are to be loaded.

    Args:
        places: the edited weights, in the model's order.
        settings: kept with the editor.
        shared: whether weights of equal shape share a net. A transposed shape never does.
        generator: of the nets' first numbers; None for an editor whose numbers are loaded.
    """

    settings_class: ClassVar[type[EditorSettings]] = EditorSettings
    settings: EditorSettings

    def __init__(
        self,
        places: Sequence[Place],
        settings: EditorSettings,
        shared: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(places, settings)
        keys = [f"{width}x{out}" for width, out in (place.shape for place in self.places)]
        if not shared:
            keys = [f"{key}-{number}" for number, key in enumerate(keys)]
        self._net_of = dict(zip((place.name for place in self.places), keys, strict=True))
        self.nets = nn.ModuleDict()
        for key in dict.fromkeys(keys):
            self.nets[key] = self.make_net(*self.places[keys.index(key)].shape, keys.count(key), generator)

    @abstractmethod
    def make_net(self, width: int, out: int, modes: int, generator: torch.Generator | None) -> ShapeNet:
        """The net of ``modes`` weights of a shape."""

    @property
    def device(self) -> torch.device:
        """Where the editor is; factors are brought there."""
        return next(self.parameters()).device

    def groups(self, factors: Mapping[str, Factors]) -> Iterator[Group]:
        """Factors by name of weight, put together for the nets."""
        for net, sharing in self._sharing():
            pieces = [_piece(net, name, sharing, factors[name], self.device) for name in sharing if name in factors]
            if pieces:
                yield Group(
                    net,
                    tuple(name for each in pieces for name in each.names),
                    tuple(size for each in pieces for size in each.sizes),
                    torch.cat([each.rows for each in pieces]),
                    torch.cat([each.mode for each in pieces]),
                )

    def pieces(self, factors: Mapping[str, Factors], size: int) -> Iterator[tuple[Group, slice]]:
        """The same weight by weight, ``size`` rows at a time, each with its place among the weight's rows.

        Nothing larger than a piece is formed.
        """
        for net, sharing in self._sharing():
            for name in sharing:
                if name in factors:
                    for start in range(0, len(factors[name].inputs), size):
                        rows = slice(start, min(start + size, len(factors[name].inputs)))
                        yield _piece(net, name, sharing, factors[name].where(rows), self.device), rows

    def observed(self, factors: Mapping[str, Factors]) -> list[Counted]:
        """What training counts into each net's normaliser of these factors."""
        return [(group.net.normaliser, Normaliser.summary(group.rows)) for group in self.groups(factors)]

    def number(self, name: str) -> int:
        """Which of :attr:`places` a weight is."""
        return list(self._net_of).index(name)

    def _sharing(self) -> Iterator[tuple[ShapeNet, list[str]]]:
        """Each net with the weights that it is for."""
        for key, net in self.nets.items():
            if not isinstance(net, ShapeNet):
                raise TypeError("make_net gives a ShapeNet")
            yield net, [name for name, of in self._net_of.items() if of == key]

    @classmethod
    def of(cls, view: ModelView, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The editor that :meth:`config` and :meth:`tensors` describe, for this model.

        Raises InputError when they are not whole, name weights that this model does not have, or were never trained.
        """
        settings, listed = described(config, cls.settings_class)
        places = places_of(view, settings.parts, settings.layers, settings.decoder_layers)
        check_places(places, listed)
        editor = made_for(tensors, lambda: cls(places, settings))
        for net, _ in editor._sharing():
            if net.normalises:
                net.normaliser.check()
        return editor.eval()


def _piece(net: ShapeNet, name: str, sharing: Sequence[str], factors: Factors, device: torch.device) -> Group:
    rows = torch.cat([factors.inputs.to(device), factors.gradients.to(device)], dim=-1)
    return Group(net, (name,), (len(rows),), rows, torch.full((len(rows),), sharing.index(name), device=device))
