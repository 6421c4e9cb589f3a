"""What is tried when the user says nothing: a small grid for each kind of settings, as data. Imports no torch.

The first value of an axis is always the one that the model has anyway (preset, or depth). Values are those that differ
most between the published settings, and those that small models needed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from attrs import frozen

from kedit_core.hparams import HyperParams
from kedit_methods_locate.hparams import (
    AlphaEditHyperParams,
    EmmetHyperParams,
    KnHyperParams,
    MemitHyperParams,
    PmetHyperParams,
    RomeHyperParams,
)

Changes = Mapping[str, Any]
"""Field -> value, of the fields that differ from the untuned settings."""


@frozen
class Layers:
    """What is known of a model's layers: how many, and those that causal tracing suggests, if it was done."""

    count: int
    suggested: int | None = None
    suggested_range: tuple[int, ...] = ()

    def at(self, shares: Sequence[float]) -> list[int]:
        """The layers at these shares of the depth; 0 is the first and 1 the last."""
        return [round(share * (self.count - 1)) for share in shares]


class Axis(ABC):
    """One thing that is varied."""

    @abstractmethod
    def values(self, untuned: HyperParams, layers: Layers) -> list[Changes]:
        """What is tried, most likely first; the untuned settings are ``{}`` and come first."""


@frozen
class Variants(Axis):
    """Settings that go together, tried as they stand."""

    changes: tuple[Changes, ...]

    def values(self, untuned: HyperParams, layers: Layers) -> list[Changes]:
        """The untuned settings and each of the variants."""
        return [{}, *self.changes]


@frozen
class Scaled(Axis):
    """A number times a few factors."""

    name: str
    factors: tuple[float, ...]

    def values(self, untuned: HyperParams, layers: Layers) -> list[Changes]:
        """The number as it is, and times each factor (six digits, for people to read)."""
        now = float(getattr(untuned, self.name))
        return [{}, *({self.name: float(f"{factor * now:.6g}")} for factor in self.factors)]


@frozen
class OneLayer(Axis):
    """The layer of a method that edits one: the traced one, and some at shares of the depth."""

    shares: tuple[float, ...] = (0.0, 0.1, 0.2, 0.35, 0.5)
    name: str = "layer"

    def values(self, untuned: HyperParams, layers: Layers) -> list[Changes]:
        """The untuned layer, then the traced one, then the shares."""
        traced = [] if layers.suggested is None else [layers.suggested]
        return [{}, *({self.name: layer} for layer in dict.fromkeys([*traced, *layers.at(self.shares)]))]


@frozen
class LayerRange(Axis):
    """The layers of a method that spreads an edit: as many as untuned, ending where one layer would be edited."""

    shares: tuple[float, ...] = (0.1, 0.2, 0.35)
    name: str = "layers"

    def values(self, untuned: HyperParams, layers: Layers) -> list[Changes]:
        """The untuned range, then the traced ones, then ranges that end at the shares."""
        span = len(getattr(untuned, self.name))
        ends = [] if layers.suggested is None else [layers.suggested]
        ranges = [tuple(range(max(end - span + 1, 0), end + 1)) for end in [*ends, *layers.at(self.shares)]]
        traced = [layers.suggested_range] if layers.suggested_range else []
        return [{}, *({self.name: list(each)} for each in dict.fromkeys([*ranges[: len(ends)], *traced, *ranges]))]


@frozen
class Grid:
    """The axes of one kind of settings; all their combinations are tried, the nearest to the untuned ones first."""

    axes: tuple[Axis, ...]

    @property
    def of_layers(self) -> bool:
        """Whether it varies layers, so that tracing has something to say."""
        return any(isinstance(axis, OneLayer | LayerRange) for axis in self.axes)


# The second is what llama-3.2, mistral and qwen were published with; the third is what models of a small width need,
# where |v0| is small and a clamp relative to it too tight.
_SEARCH = Variants(
    (
        {"clamp_norm_factor": 4.0, "v_weight_decay": 0.001},
        {"clamp_norm_factor": None, "v_num_grad_steps": 80, "v_lr": 0.2, "v_weight_decay": 0.02},
    )
)
_WEIGHT = Scaled("mom2_update_weight", (0.1, 10.0))

GRIDS: Mapping[type[HyperParams], Grid] = MappingProxyType(
    {
        RomeHyperParams: Grid((OneLayer(), _SEARCH)),
        MemitHyperParams: Grid((LayerRange(), _SEARCH, _WEIGHT)),
        EmmetHyperParams: Grid((LayerRange(), _SEARCH, _WEIGHT)),
        PmetHyperParams: Grid((LayerRange(), _SEARCH, _WEIGHT, Variants(({"kl_factor": 0.0625},)))),
        AlphaEditHyperParams: Grid((LayerRange(), _SEARCH, Scaled("l2", (0.1, 10.0)))),
        KnHyperParams: Grid(
            (
                Variants(({"threshold": 0.1}, {"threshold": 0.02})),
                Variants(({"lambda_old": 0.3, "lambda_new": 0.6}, {"lambda_old": 1.0, "lambda_new": 2.0})),
                Variants(({"embedding": "lm_head"}, {"embedding": "lm_head", "follow_sign": True})),
            )
        ),
    }
)


def grid_of(cls: type[HyperParams]) -> Grid | None:
    """The grid of these settings, or of what they are built on; None where nobody declared one."""
    return next((GRIDS[each] for each in cls.__mro__ if each in GRIDS), None)
