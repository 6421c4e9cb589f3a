"""MEND: model editing networks with gradient decomposition (Mitchell et al. 2022)."""

from kedit_methods_meta.mend.editor import MendEditor
from kedit_methods_meta.mend.method import Mend
from kedit_methods_meta.mend.training import MendTrainer

__all__ = ["Mend", "MendEditor", "MendTrainer"]
