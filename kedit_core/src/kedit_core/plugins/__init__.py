"""Discovery of what is installed (:class:`Catalogue`), and the running of the hooks (:class:`Host`).

Nothing here imports torch, and nothing a distribution provides is imported before it is asked for.
"""

from kedit_core.plugins._catalogue import Catalogue, Problem
from kedit_core.plugins._entries import (
    COMMANDS,
    CORE,
    GROUPS,
    METHODS,
    NARROWING,
    OPERATIONS,
    PLUGINS,
    Found,
    load_object,
)
from kedit_core.plugins._guard import Origin
from kedit_core.plugins._host import Host

__all__ = [
    "COMMANDS",
    "CORE",
    "GROUPS",
    "METHODS",
    "NARROWING",
    "OPERATIONS",
    "PLUGINS",
    "Catalogue",
    "Found",
    "Host",
    "Origin",
    "Problem",
    "load_object",
]
