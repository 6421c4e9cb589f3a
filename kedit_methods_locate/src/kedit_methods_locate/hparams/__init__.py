"""Settings of this distribution's methods. Imports no torch.

Names follow the papers' code; every default is that of the method's sheet, and the presets carry what differs by model.
"""

from kedit_methods_locate.hparams.base import (
    START_WORDS,
    ContextHyperParams,
    FactToken,
    KlPosition,
    LocateHyperParams,
    layer_by_depth,
)
from kedit_methods_locate.hparams.kn import KnHyperParams
from kedit_methods_locate.hparams.rome import RomeHyperParams, RRomeHyperParams
from kedit_methods_locate.hparams.spread import (
    AlphaEditHyperParams,
    EmmetHyperParams,
    MemitHyperParams,
    PmetHyperParams,
    SpreadHyperParams,
    layers_by_depth,
)

__all__ = [
    "START_WORDS",
    "AlphaEditHyperParams",
    "ContextHyperParams",
    "EmmetHyperParams",
    "FactToken",
    "KlPosition",
    "KnHyperParams",
    "LocateHyperParams",
    "MemitHyperParams",
    "PmetHyperParams",
    "RRomeHyperParams",
    "RomeHyperParams",
    "SpreadHyperParams",
    "layer_by_depth",
    "layers_by_depth",
]
