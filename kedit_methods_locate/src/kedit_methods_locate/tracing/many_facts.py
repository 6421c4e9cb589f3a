"""Average indirect effects over many facts, by the place of a token (Meng et al. 2022, figure 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from kedit_core.errors import InputError
from kedit_methods_locate.tracing.record import Table, Trace, as_lists, rounded

Place: TypeAlias = Literal[
    "before", "first_subject", "middle_subject", "last_subject", "first_after", "further", "last"
]

# in the order of the text; each token has one place
PLACES: Mapping[Place, str] = {
    "before": "before the subject",
    "first_subject": "first subject token",
    "middle_subject": "middle subject tokens",
    "last_subject": "last subject token",
    "first_after": "first token after",
    "further": "further tokens",
    "last": "last token",
}


def place_of(trace: Trace, token: int) -> Place:
    """The place of a token, by the first corrupted occurrence of the subject.

    A subject of one token has a last one only, a subject of two no middle. The prompt's last token is ``last`` also
    right after the subject, and the subject's when it ends the prompt.
    """
    start, end = trace.subjects[0]
    if token < start:
        return "before"
    if token < end:
        return "last_subject" if token == end - 1 else "first_subject" if token == start else "middle_subject"
    if token == len(trace.tokens) - 1:
        return "last"
    return "first_after" if token == end else "further"


@frozen(kw_only=True, eq=False)
class AverageTrace:
    """Average indirect effects of facts traced alike.

    Attributes:
        facts: how many.
        num_layers: blocks of the model.
        high, low: means over facts.
        effects: kind -> ``[places, layers]`` mean indirect effect over all tokens of a place, in all facts; NaN where
            no fact has such a token. Rows are those of :data:`PLACES`.
        errors: likewise its standard error; NaN for fewer than two tokens.
        tokens: ``[places]`` how many tokens there are of each.
        window: of the kinds ``mlp`` and ``attn``.
        noise, model: as in the traces.
    """

    facts: int
    num_layers: int
    high: float
    low: float
    effects: Mapping[str, Table]
    errors: Mapping[str, Table]
    tokens: NDArray[np.int64]
    window: int
    noise: Mapping[str, Any]
    model: Mapping[str, Any]

    @property
    def total_effect(self) -> float:
        """Mean of what the corruption takes away: high - low."""
        return self.high - self.low

    def at(self, kind: str, place: Place) -> NDArray[np.float64]:
        """Effects ``[layers]`` of a kind at a place. Raises InputError for a kind that was not traced."""
        if kind not in self.effects:
            raise InputError(f"{kind!r} was not traced; there are {', '.join(self.effects)}")
        return np.asarray(self.effects[kind][list(PLACES).index(place)])

    def rows(self) -> Iterator[tuple[int, Place, str]]:
        """Number, name and words of the places that there are tokens of."""
        for number, (place, words) in enumerate(PLACES.items()):
            if self.tokens[number]:
                yield number, place, words

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; places without tokens are left out, and an error that is not known is null."""
        return {
            "facts": self.facts,
            "high": rounded(self.high),
            "low": rounded(self.low),
            "total_effect": rounded(self.total_effect),
            "window": self.window,
            "noise": dict(self.noise),
            "model": dict(self.model),
            "tokens": {place: int(self.tokens[n]) for n, place, _ in self.rows()},
            "effects": self._by_place(self.effects),
            "standard_errors": self._by_place(self.errors),
        }

    def _by_place(self, tables: Mapping[str, Table]) -> dict[str, dict[str, list[float | None]]]:
        listed = {kind: as_lists(table) for kind, table in tables.items()}
        return {
            kind: {place: [None if x != x else x for x in table[n]] for n, place, _ in self.rows()}
            for kind, table in listed.items()
        }


def average(traces: Sequence[Trace]) -> AverageTrace:
    """Average traces of one model, made with the same noise and window.

    Raises:
        InputError: no trace, or traces that differ in model, kinds, window or noise.
    """
    if not traces:
        raise InputError("there is no trace to average; trace at least one fact that the model knows")
    first = traces[0]
    for each in traces[1:]:
        for name in ("num_layers", "window", "noise", "model"):
            if getattr(each, name) != getattr(first, name):
                raise InputError(
                    f"the traces of {first.prompt!r} and {each.prompt!r} differ in their {name}; trace them together"
                )
        if set(each.scores) != set(first.scores):
            raise InputError(f"the traces of {first.prompt!r} and {each.prompt!r} are not of the same kinds")
    places = [[place_of(each, token) for token in range(len(each.tokens))] for each in traces]
    flat = np.array([place for each in places for place in each])
    effects, errors = {}, {}
    for kind in first.scores:
        cells = np.concatenate([each.effect(kind) for each in traces])
        effects[kind], errors[kind] = _means(cells, flat)
    return AverageTrace(
        facts=len(traces),
        num_layers=first.num_layers,
        high=float(np.mean([each.high for each in traces])),
        low=float(np.mean([each.low for each in traces])),
        effects=effects,
        errors=errors,
        tokens=np.array([int((flat == place).sum()) for place in PLACES], dtype=np.int64),
        window=first.window,
        noise=first.noise,
        model=first.model,
    )


def _means(cells: Table, places: NDArray[np.str_]) -> tuple[Table, Table]:
    """Mean and standard error of rows ``[tokens, layers]`` by place."""
    means = np.full((len(PLACES), cells.shape[1]), np.nan)
    errors = means.copy()
    for number, place in enumerate(PLACES):
        rows = cells[places == place]
        if len(rows):
            means[number] = rows.mean(0)
        if len(rows) > 1:
            errors[number] = rows.std(0, ddof=1) / np.sqrt(len(rows))
    return means, errors
