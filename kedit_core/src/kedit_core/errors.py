"""Every error kedit raises on purpose.

A message is one sentence: what was wrong, where, and what to do. Facts a program may want are attributes.
``exit_code`` is what the command line returns: 1 when the edit or a check failed, 2 when the input was wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

SHOWN_FAULTS = 50


class KeditError(Exception):
    """The one base class; catching it catches everything kedit raises on purpose."""

    exit_code: ClassVar[int] = 1


class InputError(KeditError):
    """What the user gave cannot be used; nothing was started."""

    exit_code: ClassVar[int] = 2


class FaultsError(InputError):
    """Several faults of one input, all reported at once.

    Attributes:
        source: the file or object the faults are in.
        faults: one sentence each, with the line and field it is about.
    """

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        self.source = source
        self.faults = tuple(faults)
        shown = [f"  {fault}" for fault in self.faults[:SHOWN_FAULTS]]
        if len(self.faults) > SHOWN_FAULTS:
            shown.append(f"  ... and {len(self.faults) - SHOWN_FAULTS} more (all are in the error's faults)")
        listing = "\n".join(shown)
        super().__init__(f"{len(self.faults)} fault{'s' * (len(self.faults) != 1)} in {source}:\n{listing}")


class RequestError(FaultsError):
    """Edit requests that cannot be understood or used."""


class HyperParamsError(FaultsError):
    """Settings that a method does not have, or values that it refuses."""


class UnknownNameError(InputError):
    """A method, model, dataset, exporter or operation kind that nobody installed provides."""


class UnsupportedModelError(InputError):
    """No adapter knows this architecture, and its structure could not be made out."""


class MissingExtraError(InputError):
    """An optional feature whose library is not installed; the message says what to pip install."""


class PatchFormatError(InputError):
    """A file or bytes that are not a patch kedit can read; nothing in it was believed."""


class UntrustedPatchError(KeditError):
    """A patch whose signature is missing, or by nobody who is trusted, or of another file; it was not read."""


class BaseMismatchError(KeditError):
    """The weights are not those that the patch was made for; nothing was changed."""


class StackDisturbedError(KeditError):
    """Something else changed the model under the stack; nothing was changed by kedit."""


class StackOrderError(KeditError):
    """A patch whose parents are not on the stack, or that is not (or already) on the stack."""


class RequirementError(InputError):
    """Something a patch needs beside itself is missing or is not the right one."""


class PluginError(KeditError):
    """A plugin raised or answered wrongly.

    Attributes: plugin, distribution, hook — whom to blame, and where.
    """

    def __init__(self, message: str, *, plugin: str, distribution: str, hook: str) -> None:
        self.plugin = plugin
        self.distribution = distribution
        self.hook = hook
        super().__init__(message)


class DuplicateNameError(KeditError):
    """Two distributions provide the same name."""


class MethodError(KeditError):
    """A method could not compute the edit; the model is as it was found."""


class ScopeError(KeditError):
    """The run cannot be followed prompt by prompt (beams, chunked prefill), and an operation on the stack needs it."""
