"""The record of one traced fact: what was run, what came out, as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from kedit_core.errors import InputError
from kedit_methods_locate.tracing.cells import window
from kedit_methods_locate.tracing.settings import MODULES

Table: TypeAlias = NDArray[np.float64]

FORMAT = 1
_DIGITS = 9  # enough to give a float32 back


@frozen(kw_only=True, eq=False)
class Trace:
    """One fact, traced.

    Attributes:
        prompt, subject, case_id: the fact.
        tokens: ``[T]`` the prompt's tokens as text; ``special`` marks those that stand for none of it.
        subjects: ``[b, e)`` token ranges that were corrupted.
        answer_id, answer: the token whose probability is traced, and its text.
        answer_tokens: tokens of the expected answer, of which the first is traced; 1 when none was given.
        high, low: its probability in the clean run, and the mean over samples in the corrupted one.
        high_log, low_log: log-probability, and its mean over samples, in nats.
        scores: kind -> ``[T, layers]`` mean probability over samples with that state restored.
        log_scores: kind -> ``[T, layers]`` mean log-probability over samples, in nats.
        window: blocks in a window of the kinds ``mlp`` and ``attn``; fewer where it meets an end of the model.
        noise: rule, resolved scale, seed, samples, replace.
        model: name, revision (of the tokenizer too), architecture and dtype.
    """

    prompt: str
    subject: str
    case_id: str | None
    tokens: tuple[str, ...]
    special: tuple[bool, ...]
    subjects: tuple[tuple[int, int], ...]
    answer_id: int
    answer: str
    answer_tokens: int
    high: float
    low: float
    high_log: float
    low_log: float
    scores: Mapping[str, Table]
    log_scores: Mapping[str, Table]
    window: int
    noise: Mapping[str, Any]
    model: Mapping[str, Any] = field(factory=dict)

    @property
    def num_layers(self) -> int:
        """Blocks of the model."""
        return int(next(iter(self.scores.values())).shape[1])

    @property
    def total_effect(self) -> float:
        """What the corruption takes away: high - low."""
        return self.high - self.low

    def effect(self, kind: str) -> Table:
        """Indirect effects ``[T, layers]``: what restoring gives back, score - low. Raises InputError for no such."""
        if kind not in self.scores:
            raise InputError(f"{kind!r} was not traced; there are {', '.join(self.scores)}")
        return self.scores[kind] - self.low

    def blocks(self, kind: str, layer: int) -> tuple[int, int]:
        """First and last block that a cell of this kind restored."""
        if kind not in MODULES:
            return layer, layer
        found = window(layer, self.window, self.num_layers)
        return found[0], found[-1]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; numbers in 9 significant digits."""
        return {
            "format": FORMAT,
            "prompt": self.prompt,
            "subject": self.subject,
            "case_id": self.case_id,
            "tokens": list(self.tokens),
            "special": list(self.special),
            "subjects": [list(each) for each in self.subjects],
            "answer_id": self.answer_id,
            "answer": self.answer,
            "answer_tokens": self.answer_tokens,
            "high": rounded(self.high),
            "low": rounded(self.low),
            "high_log": rounded(self.high_log),
            "low_log": rounded(self.low_log),
            "window": self.window,
            "noise": dict(self.noise),
            "model": dict(self.model),
            "scores": {kind: as_lists(table) for kind, table in self.scores.items()},
            "log_scores": {kind: as_lists(table) for kind, table in self.log_scores.items()},
        }

    def to_json(self) -> str:
        """The record as one JSON object."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trace:
        """The trace of :meth:`to_dict`. Raises InputError for anything that is none."""
        try:
            if data["format"] != FORMAT:
                raise InputError(f"this trace is of format {data['format']!r}, and kedit reads format {FORMAT}")
            tokens = tuple(str(token) for token in data["tokens"])
            plain: dict[str, Any] = {
                name: data[name]
                for name in ("prompt", "subject", "case_id", "answer_id", "answer", "answer_tokens", "window")
            }
            plain |= {name: float(data[name]) for name in ("high", "low", "high_log", "low_log")}
            tables = {
                name: {str(kind): np.array(table, dtype=np.float64) for kind, table in data[name].items()}
                for name in ("scores", "log_scores")
            }
            shapes = {table.shape for each in tables.values() for table in each.values()}
            if len(shapes) != 1 or len(shape := shapes.pop()) != 2 or shape[0] != len(tokens):
                raise ValueError("tables are not of one shape, tokens by layers")
            return cls(
                **plain,
                scores=tables["scores"],
                log_scores=tables["log_scores"],
                tokens=tokens,
                special=tuple(bool(each) for each in data["special"]),
                subjects=tuple((int(start), int(end)) for start, end in data["subjects"]),
                noise=dict(data["noise"]),
                model=dict(data["model"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this is no record of a trace ({error!r}); give what Trace.to_json wrote") from error

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """The trace of :meth:`to_json`. Raises InputError for anything that is none."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise InputError(f"this is no JSON ({error}); give what Trace.to_json wrote") from error
        return cls.from_dict(data)


def rounded(value: float) -> float:
    """A number to as many digits as records keep."""
    return float(f"{value:.{_DIGITS}g}")


def as_lists(table: Table) -> list[list[float]]:
    """A table as rows of rounded numbers."""
    return [[rounded(value) for value in row] for row in table.tolist()]
