"""The record of a search: what was looked for, what was found, and the error that tells both."""

from __future__ import annotations

from kedit_core.errors import UnsupportedModelError


class Search:
    """What has been found of a model's structure so far.

    Args:
        architecture: the model's class name, for the message.
    """

    def __init__(self, architecture: str) -> None:
        self.architecture = architecture
        self.lines: list[str] = []

    def found(self, sought: str, what: str) -> None:
        """Note that something was found."""
        self.lines.append(f"  {sought}: {what}")

    def failed(self, sought: str, reason: str) -> UnsupportedModelError:
        """The error to raise: nothing more can be looked for once this one is missing."""
        listing = "\n".join([*self.lines, f"  {sought}: NOT FOUND, {reason}"])
        return UnsupportedModelError(
            f"no adapter is registered for {self.architecture}, and its structure could not be made out; register a "
            f"ModelAdapter with the hook register_adapters (docs/models.md). Looked for:\n{listing}"
        )
