"""Plain fine-tuning of a few weights: FT-L, FT-M and breadth-first fine-tuning."""

from kedit_methods_finetune.ft.method import FineTuning, FtBf, FtL, FtM
from kedit_methods_finetune.ft.training import Trained, train

__all__ = ["FineTuning", "FtBf", "FtL", "FtM", "Trained", "train"]
