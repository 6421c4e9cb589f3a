"""A difference as people read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedit_core.evaluation.report import format_value

if TYPE_CHECKING:
    from kedit_bench.differences import Difference


_SAID = frozenset({"share", "seconds", "bytes"})


def value_text(value: float | None, unit: str) -> str:
    """A value in its unit; the less usual units are left to the metric's name."""
    return format_value(value, unit if unit in _SAID else "")


def change_text(value: float, unit: str) -> str:
    """With its sign; a difference of shares in points: ``+4.2``."""
    if unit == "share":
        text = f"{100 * value:+.1f}"
        return ("0.0" if float(text) == 0 else text).replace("-", "−")
    return ("−" if value < 0 else "+" if value > 0 else "") + value_text(abs(value), unit)


def interval_text(found: Difference) -> str:
    """Its interval, or a dash."""
    if found.low is None or found.high is None:
        return "–"
    return f"{change_text(found.low, found.unit)} to {change_text(found.high, found.unit)}"


def p_text(p: float | None) -> str:
    """Two digits that count, and never 0."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.2g}"
