"""WISE: a side memory for one matrix, in shards, with routing by activation (Wang et al. 2024, arXiv 2405.14768)."""

from kedit_methods_memory.wise.kind import WiseMemory
from kedit_methods_memory.wise.method import Wise

__all__ = ["Wise", "WiseMemory"]
