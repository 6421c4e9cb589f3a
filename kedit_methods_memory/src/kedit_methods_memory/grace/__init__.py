"""GRACE: a codebook of keys with radii that replaces one layer's output (Hartvigsen et al. 2023). Needs torch."""

from kedit_methods_memory.grace.kind import Codebook
from kedit_methods_memory.grace.method import Grace
from kedit_methods_memory.grace.radius import suggested_radius

__all__ = ["Codebook", "Grace", "suggested_radius"]
