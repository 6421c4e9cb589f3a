"""What editors of this family are made of: a net for each shape of weight, told which of its weights a row is of."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from attrs import asdict, frozen
from torch import Tensor, nn

from kedit_core.errors import InputError
from kedit_core.models import ModelView
from kedit_methods_meta.factors import Factors
from kedit_methods_meta.hparams.editor import EditorSettings
from kedit_methods_meta.normaliser import Normaliser
from kedit_methods_meta.places import Place, places_of


class ShapeNet(nn.Module):
    """A net for weights of one shape; it normalises rows ``[R, in + out]`` of factors."""

    normaliser: Normaliser


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


class EditorModule(nn.Module):
    """Nets by shape, and what is learned beside them. Made without more arguments, its numbers are to be loaded.

    Args:
        places: the edited weights, in the model's order.
        settings: kept with the editor.
        shared: whether weights of equal shape share a net. A transposed shape never does.

    Attributes:
        settings_class: of its settings.
    """

    settings_class: ClassVar[type[EditorSettings]] = EditorSettings

    def __init__(self, places: Sequence[Place], settings: EditorSettings, shared: bool = True) -> None:
        super().__init__()
        self.places, self.settings = tuple(places), settings
        keys = [f"{width}x{out}" for width, out in (place.shape for place in self.places)]
        if not shared:
            keys = [f"{key}-{number}" for number, key in enumerate(keys)]
        self._net_of = dict(zip((place.name for place in self.places), keys, strict=True))
        self.nets = nn.ModuleDict()
        for key in dict.fromkeys(keys):
            self.nets[key] = self.make_net(*self.places[keys.index(key)].shape, keys.count(key))

    @abstractmethod
    def make_net(self, width: int, out: int, modes: int) -> ShapeNet:
        """The net of ``modes`` weights of a shape."""

    @property
    def device(self) -> torch.device:
        """Where the editor is; factors are brought there."""
        return next(self.parameters()).device

    def groups(self, factors: Mapping[str, Factors]) -> Iterator[Group]:
        """Factors by name of weight, put together for the nets."""
        for key, net in self.nets.items():
            sharing = [name for name, of in self._net_of.items() if of == key]
            names = [name for name in sharing if name in factors]
            if names:
                each = [factors[name] for name in names]
                rows = [torch.cat([one.inputs, one.gradients], dim=-1).to(self.device) for one in each]
                sizes = [len(one) for one in rows]
                modes = torch.tensor([sharing.index(name) for name in names], device=self.device)
                mode = modes.repeat_interleave(torch.tensor(sizes, device=self.device))
                if not isinstance(net, ShapeNet):
                    raise TypeError("make_net gives a ShapeNet")
                yield Group(net, tuple(names), tuple(sizes), torch.cat(rows), mode)

    def observed(self, factors: Mapping[str, Factors]) -> list[tuple[Normaliser, Tensor]]:
        """Each net's normaliser, with the rows ``[R, in + out]`` of these factors that training counts into it."""
        return [(group.net.normaliser, group.rows) for group in self.groups(factors)]

    def number(self, name: str) -> int:
        """Which of :attr:`places` a weight is."""
        return list(self._net_of).index(name)

    # ------------------------------------------------------------------ what is saved
    def config(self) -> dict[str, Any]:
        """What is needed to make this editor again, beside its tensors and the model: JSON."""
        return {"settings": self.settings.to_dict(), "places": [asdict(place) for place in self.places]}

    def tensors(self) -> dict[str, Tensor]:
        """All that is learned and counted, by name: what a checkpoint holds."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`tensors` gave. Raises InputError for tensors that are not this editor's."""
        own = self.state_dict()
        wrong = sorted({*own} ^ {*tensors}) or [name for name in own if own[name].shape != tensors[name].shape]
        if wrong:
            raise InputError(
                f"the editor's tensors do not go with its settings (see {wrong[0]!r}); get the whole folder again"
            )
        self.load_state_dict(dict(tensors))

    @classmethod
    def of(cls, view: ModelView, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The editor that :meth:`config` and :meth:`tensors` describe, for this model.

        Raises InputError when they are not whole, or name weights that this model does not have.
        """
        settings, listed = config.get("settings"), config.get("places")
        if not isinstance(settings, Mapping) or not isinstance(listed, list):
            raise InputError("the editor's state has no settings or no places; get the whole folder again")
        known = cls.settings_class.from_dict(settings, "the editor's settings")
        places = places_of(view, known.parts, known.layers, known.decoder_layers)
        if [asdict(place) for place in places] != listed:
            raise InputError(
                "the editor's weights are not those that its settings name in this model; use the model it was "
                "trained for"
            )
        editor = cls(places, known)
        editor.load(tensors)
        return editor.eval()
