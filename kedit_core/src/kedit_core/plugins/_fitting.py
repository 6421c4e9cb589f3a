"""Whether a distribution was made for the kedit-core that is running, told from its metadata alone.

A plugin declares the versions it works with as any dependency is declared (``kedit-core>=0.1,<0.2``). pip warns when
they do not go together, and installs them all the same; so it is looked at once more where plugins are found. Nothing
is imported for it: what was made for another core may fail in any way when it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kedit_core.plugins._entries import Found

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from packaging.specifiers import Specifier
    from packaging.version import Version


def sorted_out(entries: Iterable[Found], core: str) -> tuple[list[Found], dict[Found, str]]:
    """Entries of distributions that go with this version of kedit-core, and the others, each with the sentence."""
    sentences: dict[tuple[str, tuple[str, ...]], str | None] = {}
    fitting: list[Found] = []
    unfit: dict[Found, str] = {}
    for found in entries:
        key = found.provider, found.needs
        if key not in sentences:
            sentences[key] = misfit(found, core)
        if (sentence := sentences[key]) is None:
            fitting.append(found)
        else:
            unfit[found] = sentence
    return fitting, unfit


def misfit(found: Found, core: str) -> str | None:
    """The sentence about an entry whose distribution asks for another kedit-core than ``core``; None when all is well.

    Requirements that cannot be read ask for nothing here: it is no fault of the user's, and pip has its own word on it.
    """
    if not (requirements := _readable(found.needs)):
        return None
    from packaging.version import InvalidVersion, Version

    try:
        running = Version(core)
    except InvalidVersion:
        return None
    asked = [each for requirement in requirements for each in requirement.specifier]
    refusing = [each for each in asked if not each.contains(running, True)]
    if not refusing:
        return None
    wanted = ",".join(sorted({str(each) for each in asked}, reverse=True))
    if all(_wants_later(each, running) for each in refusing):
        remedy = f"upgrade kedit-core: pip install 'kedit-core{wanted}'"
    else:
        remedy = f"upgrade {found.distribution}: pip install --upgrade {found.distribution}"
    return f"{found.provider} works with kedit-core {wanted}, and this is kedit-core {core}; {remedy}"


def _readable(needs: Iterable[str]) -> list[Requirement]:
    """The requirements that hold here: well formed, and with an environment marker that is true."""
    found: list[Requirement] = []
    for each in needs:
        from packaging.requirements import InvalidRequirement, Requirement

        try:
            requirement = Requirement(each)
            holds = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        except (InvalidRequirement, ValueError):
            continue
        if holds:
            found.append(requirement)
    return found


def _wants_later(refusing: Specifier, running: Version) -> bool:
    """Whether a specifier that refuses ``running`` does so because it asks for a later version."""
    from packaging.version import InvalidVersion, Version

    if refusing.operator in (">", ">="):
        return True
    try:
        return refusing.operator in ("==", "~=", "===") and Version(refusing.version.removesuffix(".*")) > running
    except InvalidVersion:
        return False
