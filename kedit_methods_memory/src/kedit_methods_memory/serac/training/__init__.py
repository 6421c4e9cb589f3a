"""Training a SERAC editor: scope classifier and counterfactual model."""

from kedit_methods_memory.serac.training.run import Training, train_serac

__all__ = ["Training", "train_serac"]
