"""Which cells may stand side by side: same model, dataset, scenario and tags; and which of them is best and worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define, field, frozen

from kedit_bench.report.facts import FREE, MetricFacts, facts_of, protocol_rank
from kedit_bench.report.reading import Bench, Cell

BEST, WORST = "best", "worst"


@frozen(kw_only=True)
class Metric:
    """One column's worth: a metric whose results all have the same tag."""

    facts: MetricFacts
    tag: str


@frozen(kw_only=True)
class Comparable:
    """Cells whose numbers may be ranked: no metric has two tags among them."""

    cells: tuple[Cell, ...]
    metrics: Mapping[str, Metric]

    @property
    def headline(self) -> str:
        """The protocol that charts show: free generation where it was measured, else the first one there is."""
        protocols = {metric.facts.group for metric in self.metrics.values() if metric.facts.is_core}
        return min(protocols, key=lambda name: (protocol_rank(name), name)) if protocols else FREE

    @property
    def tags(self) -> tuple[str, ...]:
        """Every tag once."""
        return tuple(dict.fromkeys(metric.tag for metric in self.metrics.values()))

    def core(self, protocol: str) -> list[Metric]:
        """The core's metrics under a protocol that have a value in some cell."""
        return [
            metric
            for name, metric in self.metrics.items()
            if metric.facts.is_core and metric.facts.group == protocol and self.has(name)
        ]

    def has(self, name: str) -> bool:
        """Whether some cell has a value of it."""
        return any(value is not None for value in self.values(name))

    def values(self, name: str) -> list[float | None]:
        """One metric's value in each cell."""
        return [cell.evaluation[name].value if name in cell.evaluation else None for cell in self.cells]


@frozen(kw_only=True)
class Group:
    """All cells of one model, dataset and scenario."""

    number: int
    model: str
    dataset: str
    scenario: str
    tables: tuple[Comparable, ...]
    failed: tuple[Cell, ...]

    @property
    def anchor(self) -> str:
        """Its id on the page."""
        return f"group-{self.number}"

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Those that did not fail."""
        return tuple(cell for table in self.tables for cell in table.cells)


def groups_of(bench: Bench) -> tuple[Group, ...]:
    """The cells of a bench by what may be compared, in the order of the file."""
    by_place: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in bench.cells:
        by_place.setdefault(cell.place, []).append(cell)
    return tuple(
        Group(
            number=number,
            model=model,
            dataset=dataset,
            scenario=scenario if len({cell.scenario.text for cell in cells}) > 1 else cells[0].scenario.text,
            tables=_tables([cell for cell in cells if cell.error is None], bench.metrics),
            failed=tuple(cell for cell in cells if cell.error is not None),
        )
        for number, ((model, dataset, scenario), cells) in enumerate(by_place.items(), 1)
    )


def marks(values: Sequence[float | None], facts: MetricFacts) -> list[str | None]:
    """``best`` and ``worst`` of a column, several where they read the same; none where all read the same.

    Values are told apart as they are shown, so that no difference is marked which nobody can see.
    """
    known = [value for value in values if value is not None]
    if facts.better is None or not known:
        return [None] * len(values)
    first, last = (max, min) if facts.better == "higher" else (min, max)
    best, worst = facts.text(first(known)), facts.text(last(known))
    if best == worst:
        return [None] * len(values)
    named = {best: BEST, worst: WORST}
    return [None if value is None else named.get(facts.text(value)) for value in values]


@define
class _Growing:
    """Cells that agree in their tags so far."""

    tags: dict[str, str] = field(factory=dict)
    cells: list[Cell] = field(factory=list)

    def fits(self, cell: Cell) -> bool:
        return all(self.tags.get(name, result.tag) == result.tag for name, result in cell.evaluation.items())

    def add(self, cell: Cell) -> None:
        self.cells.append(cell)
        self.tags.update({name: result.tag for name, result in cell.evaluation.items()})


def _tables(cells: Sequence[Cell], told: Mapping[str, Mapping[str, Any]]) -> tuple[Comparable, ...]:
    growing: list[_Growing] = []
    for cell in cells:
        home = next((each for each in growing if each.fits(cell)), None)
        if home is None:
            home = _Growing()
            growing.append(home)
        home.add(cell)
    return tuple(
        Comparable(
            cells=tuple(each.cells),
            metrics={
                name: Metric(facts=facts_of(name, result.unit, told), tag=result.tag)
                for name, result in sorted(
                    {n: r for cell in each.cells for n, r in cell.evaluation.items()}.items(),
                    key=lambda item: protocol_rank(item[0].partition(".")[0]),
                )
            },
        )
        for each in growing
    )
