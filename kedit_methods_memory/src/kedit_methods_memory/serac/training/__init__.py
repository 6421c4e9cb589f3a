"""Training a SERAC editor: scope classifier and counterfactual model."""

from kedit_methods_memory.serac.training.trainer import SeracTrainer

__all__ = ["SeracTrainer"]
