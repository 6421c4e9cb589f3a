"""Settings of this distribution's methods. Imports no torch."""

from kedit_methods_finetune.hparams.ft import FtBfHyperParams, FtHyperParams, FtLHyperParams, FtMHyperParams
from kedit_methods_finetune.hparams.lora import AdaLoraHyperParams, LoraHyperParams

__all__ = [
    "AdaLoraHyperParams",
    "FtBfHyperParams",
    "FtHyperParams",
    "FtLHyperParams",
    "FtMHyperParams",
    "LoraHyperParams",
]
