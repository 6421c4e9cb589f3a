"""Colours of methods, and the numbers that shapes are drawn with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import frozen

from kedit_bench.report.markup import Markup, element

COLOURS = 8


@frozen(kw_only=True)
class Palette:
    """A number for each method, the same on the whole page; colours come again after eight, dashes then differ."""

    numbers: Mapping[str, int]

    @classmethod
    def of(cls, labels: Iterable[str]) -> Palette:
        """One for these labels, in order of appearance."""
        return cls(numbers={label: number for number, label in enumerate(dict.fromkeys(labels))})

    def number(self, label: str) -> int:
        """The method's number on the page."""
        return self.numbers[label]

    def classes(self, label: str) -> str:
        """CSS classes with the method's colour, and the dash of its lines."""
        number = self.numbers[label]
        return f"c{number % COLOURS} d{number % COLOURS if number < COLOURS else (number + 3) % COLOURS}"

    def swatch(self, label: str) -> Markup:
        """A small square in the method's colour."""
        shape = element("rect", width=10, height=10, rx=2.5)
        return element("svg", shape, class_=f"swatch {self.classes(label)}", width=10, height=10, aria_hidden="true")


def percent(share: float) -> str:
    """A length or place as part of the whole: ``0.25`` -> ``25%``."""
    return f"{round(100 * share, 2):g}%"


def number(value: float) -> str:
    """Three digits that count: ``0.0123``, ``12.3``, ``1.2e-05``."""
    return f"{value:.3g}"
