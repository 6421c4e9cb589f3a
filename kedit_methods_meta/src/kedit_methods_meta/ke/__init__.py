"""KE (KnowledgeEditor): a network reads an edit and gates, masks and shifts its gradient (De Cao et al. 2021)."""

from kedit_methods_meta.ke.editor import KeEditor
from kedit_methods_meta.ke.method import Ke
from kedit_methods_meta.ke.training import KeTrainer

__all__ = ["Ke", "KeEditor", "KeTrainer"]
