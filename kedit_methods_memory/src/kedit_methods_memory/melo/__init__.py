"""MELO: blocks of a low-rank adapter, picked by a database over one layer's states (Yu et al. 2024). Needs torch."""

from kedit_methods_memory.melo.kind import Blocks
from kedit_methods_memory.melo.method import Melo

__all__ = ["Blocks", "Melo"]
