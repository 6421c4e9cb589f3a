"""MALMEN: massive editing by least-squares aggregation (Tan et al. 2024)."""

from kedit_methods_meta.malmen.editor import MalmenEditor
from kedit_methods_meta.malmen.method import Malmen
from kedit_methods_meta.malmen.training import MalmenTrainer

__all__ = ["Malmen", "MalmenEditor", "MalmenTrainer"]
