"""Two benches, or two methods of one, case by case: which differences are more than chance among the cases."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from attrs import evolve, frozen

from kedit_bench.differences import Comparison, Difference, Pair, Refusal
from kedit_bench.pairing import Column, Pairing
from kedit_bench.report.reading import Bench, Cell, load_bench, read_bench
from kedit_bench.resampling import bootstrap_intervals, sign_flip_p
from kedit_core.errors import InputError, UnknownNameError

__all__ = ["Comparison", "Difference", "Pair", "Refusal", "Side", "compare"]


@frozen(kw_only=True)
class Side:
    """One side of a comparison as people write it: a folder, or ``FOLDER:METHOD``."""

    text: str
    bench: Mapping[str, Any]
    method: str | None

    @classmethod
    def parse(cls, text: str) -> Side:
        """Read a side; what is before the last colon is the folder, unless all of it is one.

        Raises InputError when there is no bench.
        """
        folder, colon, method = text.rpartition(":")
        if not colon or os.path.exists(text):  # noqa: PTH110 - Path raises where a text is too long for a file
            return cls(text=text, bench=load_bench(text), method=None)
        return cls(text=text, bench=load_bench(folder), method=method)


def compare(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    *,
    method_a: str | None = None,
    method_b: str | None = None,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Differences of B from A, metric by metric, paired by case.

    Cells are matched by model, method (its label), dataset and scenario; with ``method_a`` and ``method_b`` the cells
    of these two methods are matched instead, from two benches or from one. A metric is compared only where both were
    measured in the same way (their tags agree) and where it is a mean over cases.

    Args:
        a, b: contents of ``bench.json``.
        method_a, method_b: labels; both or neither.
        samples: resamples of the bootstrap, and of the test.
        seed: everything random follows from it.
        level: of the intervals.

    Raises InputError when a bench cannot be read or an argument is out of its range, UnknownNameError for a method that
    a bench does not have.
    """
    if samples < 100 or seed < 0 or not 0 < level < 1:
        raise InputError(
            f"samples={samples}, seed={seed}, level={level} cannot be used; give 100 samples or more, a seed from 0 on "
            "and a level between 0 and 1"
        )
    if (method_a is None) != (method_b is None):
        raise InputError("a method is named on one side only; name one on both sides, or on neither")
    bench_a, bench_b = read_bench(a), read_bench(b)
    told = {**bench_b.metrics, **bench_a.metrics}
    unmatched: list[str] = []
    columns: list[Column] = []
    pairs: list[tuple[Pairing, list[Column]]] = []
    sides = _cells(bench_a, method_a, "A"), _cells(bench_b, method_b, "B")
    for cells in _matched(*sides, method_a is None, unmatched):
        pairing = Pairing(*cells, told=told, level=level)
        pairs.append((pairing, list(pairing.columns())))
        columns += pairs[-1][1]
    _resample(columns, samples=samples, seed=seed, level=level)
    return Comparison(
        pairs=tuple(_pair(pairing, of_pair) for pairing, of_pair in pairs),
        unmatched=tuple(unmatched),
        samples=samples,
        seed=seed,
        level=level,
    )


def _pair(pairing: Pairing, columns: Sequence[Column]) -> Pair:
    cell = pairing.a
    ways = dict.fromkeys((cell.scenario.text, pairing.b.scenario.text))
    return Pair(
        model=cell.model,
        dataset=cell.dataset,
        scenario=" against ".join(ways),
        label_a=cell.label,
        label_b=pairing.b.label,
        differences=tuple(column.found for column in columns),
        refused=tuple(pairing.refused),
    )


_Key = tuple[str, ...]


def _cells(bench: Bench, method: str | None, side: str) -> list[Cell]:
    """The cells of a side."""
    if method is None:
        return list(bench.cells)
    labels = list(dict.fromkeys(cell.label for cell in bench.cells))
    if method not in labels:
        near = difflib.get_close_matches(method, labels, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "use one of them"
        raise UnknownNameError(f"bench {side} has no method {method!r}; it has {', '.join(labels) or 'none'}; {hint}")
    return [cell for cell in bench.cells if method in (cell.label, cell.own_label)]


def _matched(a: Sequence[Cell], b: Sequence[Cell], by_label: bool, unmatched: list[str]) -> Iterator[tuple[Cell, Cell]]:
    """Cells of the very same scenario first; then those that may stand side by side."""

    def exactly(cell: Cell) -> _Key:
        return cell.model, cell.dataset, cell.scenario.text, cell.own_label if by_label else ""

    def nearly(cell: Cell) -> _Key:
        return *cell.place, cell.own_label if by_label else ""

    partner: dict[int, Cell] = {}
    left = list(b)
    for key in (exactly, nearly):
        for cell in a:
            same = [other for other in left if id(cell) not in partner and key(other) == key(cell)]
            if same:
                partner[id(cell)] = same[0]
                left = [other for other in left if other is not same[0]]
    for cell in a:
        other = partner.get(id(cell))
        if other is None:
            unmatched.append(f"{_named(cell)}: bench B has no such cell")
        elif failed := [side for side, each in (("A", cell), ("B", other)) if each.error is not None]:
            unmatched.append(f"{_named(cell)}: failed in {' and '.join(failed)}")
        else:
            yield cell, other
    unmatched += [f"{_named(cell)}: bench A has no such cell" for cell in left]


def _named(cell: Cell) -> str:
    return f"{cell.label} on {cell.model}, {cell.dataset}, {cell.scenario.text}"


def _resample(columns: Sequence[Column], *, samples: int, seed: int, level: float) -> None:
    """Fill in intervals and p-values, columns with as many cases together: the same cases are drawn for all."""
    by_pairs: dict[int, list[Column]] = {}
    for column in columns:
        by_pairs.setdefault(len(column.by_case), []).append(column)
    for pairs, alike in by_pairs.items():
        if pairs < 2:
            continue
        matrix = np.array([column.by_case for column in alike]).T
        low, high = bootstrap_intervals(matrix, samples=samples, seed=seed, level=level)
        p = sign_flip_p(matrix, samples=samples, seed=seed)
        for index, column in enumerate(alike):
            column.found = evolve(column.found, low=float(low[index]), high=float(high[index]), p=float(p[index]))
