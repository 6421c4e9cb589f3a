"""SERAC: edits in an explicit memory of text, a scope classifier, a counterfactual model (Mitchell et al. 2022)."""

from kedit_methods_memory.serac.method import Serac
from kedit_methods_memory.serac.router import ScopeRouter

__all__ = ["ScopeRouter", "Serac"]
