"""Two benches, or two methods of one, case by case: which differences are more than chance among the cases."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
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
        if not colon or Path(text).exists():
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
    for cells in _matched(_cells(bench_a, method_a, "A"), _cells(bench_b, method_b, "B"), unmatched):
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
    return Pair(
        model=cell.model,
        dataset=cell.dataset,
        scenario=cell.scenario.text,
        label_a=cell.label,
        label_b=pairing.b.label,
        differences=tuple(column.found for column in columns),
        refused=tuple(pairing.refused),
    )


_Key = tuple[str, ...]


def _cells(bench: Bench, method: str | None, side: str) -> dict[_Key, Cell]:
    """The cells of a side by what they are matched by."""
    if method is None:
        return {(*cell.place, cell.label): cell for cell in bench.cells}
    labels = list(dict.fromkeys(cell.label for cell in bench.cells))
    if method not in labels:
        near = difflib.get_close_matches(method, labels, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "use one of them"
        raise UnknownNameError(f"bench {side} has no method {method!r}; it has {', '.join(labels) or 'none'}; {hint}")
    return {cell.place: cell for cell in bench.cells if cell.label == method}


def _matched(a: Mapping[_Key, Cell], b: Mapping[_Key, Cell], unmatched: list[str]) -> Iterator[tuple[Cell, Cell]]:
    for key, cell in {**a, **b}.items():
        what = f"{cell.label} on {cell.model}, {cell.dataset}, {cell.scenario.text}"
        absent = [side for side, cells in (("A", a), ("B", b)) if key not in cells]
        failed = [side for side, cells in (("A", a), ("B", b)) if key in cells and cells[key].error is not None]
        if absent:
            unmatched.append(f"{what}: bench {absent[0]} has no such cell")
        elif failed:
            unmatched.append(f"{what}: failed in {' and '.join(failed)}")
        else:
            yield a[key], b[key]


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
