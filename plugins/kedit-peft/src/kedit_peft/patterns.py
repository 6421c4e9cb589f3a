"""PEFT's patterns for names of modules, which a stranger's file holds, matched in bounded time."""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import field, frozen

from kedit_core.errors import InputError

_LONGEST = 512
_MOST_REPEATS = 2  # of one pattern
_MOST_REPEATING = 64  # patterns that repeat something at all
_PLAIN = re.compile(r"[\w.\-^$|()?:*+\[\]]*", re.ASCII)
_REPEAT = re.compile(r"[*+]|(?<!\()\?")


@frozen
class Patterns:
    """Numbers by pattern: the first that matches the end of a module's name counts, as in PEFT's ``get_pattern_key``.

    Groups are not repeated and few single characters are, so that matching a name of n characters takes n^3 steps at
    most; references to groups are not known.
    """

    values: Mapping[str, float]
    _compiled: tuple[tuple[re.Pattern[str], float], ...] = field(repr=False)

    @classmethod
    def of(cls, values: Mapping[str, float]) -> Patterns:
        """InputError for a pattern whose matching could take long, or that is no regular expression."""
        if sum(_repeats(pattern) > 0 for pattern in values) > _MOST_REPEATING:
            raise InputError(
                f"more than {_MOST_REPEATING} patterns of adapter_config.json repeat a part; write the names"
            )
        return cls(values, tuple((_compiled(pattern), value) for pattern, value in values.items()))

    def value(self, module: str, otherwise: float) -> float:
        """The number of the first pattern that matches."""
        return next((value for pattern, value in self._compiled if pattern.match(module)), otherwise)


def _repeats(pattern: str) -> int:
    return len(_REPEAT.findall(_without_classes(pattern)))


def _without_classes(pattern: str) -> str:
    """A pattern without what is written with a backslash, of which a digit, a letter and a dot are known."""
    return re.sub(r"\\[dw.]", "x", pattern)


def _compiled(pattern: str) -> re.Pattern[str]:
    plain = _without_classes(pattern)
    known = len(pattern) <= _LONGEST and _PLAIN.fullmatch(plain) is not None
    if not known or _repeats(pattern) > _MOST_REPEATS or re.search(r"\)[*+?]", plain):
        raise InputError(
            f"the pattern {pattern[:80]!r} of adapter_config.json is no simple pattern of module names; write the names"
        )
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"the pattern {pattern[:80]!r} of adapter_config.json cannot be read ({error})") from error
