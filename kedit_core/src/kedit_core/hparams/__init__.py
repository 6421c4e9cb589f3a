"""Settings of methods: attrs classes, read strictly, put together from defaults, presets, files and the command line.

Nothing here imports torch.
"""

from kedit_core.hparams._base import HyperParams, ModelShape
from kedit_core.hparams._presets import Preset, load_presets, read_preset
from kedit_core.hparams._resolve import Resolved, resolve
from kedit_core.hparams._settings import parse_override, read_settings, scalar

__all__ = [
    "HyperParams",
    "ModelShape",
    "Preset",
    "Resolved",
    "load_presets",
    "parse_override",
    "read_preset",
    "read_settings",
    "resolve",
    "scalar",
]
