"""Tools for testing methods and plugins: the conformance kit, and tiny random models of every family.

Nothing is imported until it is asked for. ``MethodContract`` needs pytest (``pip install 'kedit-core[testing]'``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kedit_core.testing.contract import MethodContract

__all__ = ["MethodContract"]


def __getattr__(name: str) -> Any:
    if name != "MethodContract":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from kedit_core.testing.contract import MethodContract
    except ModuleNotFoundError as error:
        if error.name != "pytest":
            raise
        from kedit_core.errors import MissingExtraError

        raise MissingExtraError("the conformance kit needs pytest: pip install 'kedit-core[testing]'") from error
    return MethodContract
