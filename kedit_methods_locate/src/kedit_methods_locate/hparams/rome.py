"""Settings of ROME and R-ROME. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

from attrs import field, frozen, validators

from kedit_core.hparams import ModelShape
from kedit_methods_locate.hparams.base import ContextHyperParams, layer_by_depth

Variant: TypeAlias = Literal["r_rome", "p_rome"]


@frozen(kw_only=True)
class RomeHyperParams(ContextHyperParams):
    """Settings of ROME.

    Attributes:
        layer: the block whose MLP down-projection is edited.
    """

    layer: int = field(validator=validators.ge(0))

    @classmethod
    def for_depth(cls, shape: ModelShape) -> Mapping[str, Any]:
        """The layer in proportion to the depth, from the published settings."""
        return {"layer": layer_by_depth(shape)}

    def named_layers(self) -> Mapping[str, tuple[int, ...]]:
        """The one that is edited."""
        return {"layer": (self.layer,)}


@frozen(kw_only=True)
class RRomeHyperParams(RomeHyperParams):
    """Settings of R-ROME.

    Attributes:
        variant: ``r_rome`` takes averaged keys throughout, ``p_rome`` the bare prompt's key throughout.
    """

    variant: Variant = field(default="r_rome", validator=validators.in_(get_args(Variant)))
