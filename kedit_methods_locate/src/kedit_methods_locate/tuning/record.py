"""What tuning found: JSON for programs, a preset for the next edits. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from attrs import frozen

from kedit_core.contract import Scenario
from kedit_core.hparams import HyperParams, ModelShape, Preset
from kedit_methods_locate.tuning.candidates import Candidate, Candidates
from kedit_methods_locate.tuning.halving import Round, Standing, Stop
from kedit_methods_locate.tuning.scoring import Score


@frozen(kw_only=True)
class Check:
    """The winner against the untuned settings on the same cases.

    ``held_out``: nobody was chosen by these cases. ``untuned`` is None when it failed or was not measured there.
    """

    held_out: bool
    winner: Score
    untuned: Score | None


@frozen(kw_only=True)
class Tuning:
    """A finished tuning.

    Attributes:
        method, shape, model_name: of what was tuned.
        scenario, batch_size, seed: how facts were edited.
        protocol, metrics: what the score is made of; ``missing`` are metrics that no request has probes for.
        candidates: all that was tried, the untuned settings first.
        rounds: what each found.
        winner, score: the settings chosen, and what they did on the cases of their last round.
        check: the winner against the untuned settings, None when nothing is known.
        stopped: what ended it early.
        edits, seconds: what it took.
        notes: sentences for the user.
    """

    method: str
    shape: ModelShape
    model_name: str | None
    scenario: Scenario
    batch_size: int
    seed: int
    protocol: str
    metrics: tuple[str, ...]
    missing: tuple[str, ...]
    candidates: Candidates
    rounds: tuple[Round, ...]
    winner: Candidate
    score: Score
    check: Check | None
    stopped: Stop | None
    edits: int
    seconds: float
    notes: tuple[str, ...] = ()

    def last_standing(self, number: int) -> tuple[int, Standing] | None:
        """The last round (counted from 0) that has a score of a candidate, or says why it failed; None for neither."""
        found = [
            (index, standing)
            for index, each in enumerate(self.rounds)
            for standing in each.standings
            if standing.number == number and (standing.score is not None or standing.failed is not None)
        ]
        return found[-1] if found else None

    def preset(self, name: str = "tuned") -> Preset:
        """The winner as a preset for models of this shape: all settings that are not the method's defaults."""
        return Preset(name=name, shapes=(self.shape,), hparams=beside_defaults(self.winner.hparams), origin=self.source)

    @property
    def source(self) -> str:
        """How the settings were found, in one sentence."""
        on = f" of {self.model_name}" if self.model_name else ""
        figures = ", ".join(f"{name} {value:.3f}" for name, value in self.score.metrics.items())
        text = (
            f"kedit tune {self.method}{on}: {len(self.candidates.tried)} settings tried with {self.edits} edits (seed "
            f"{self.seed}); score {self.score.value:.3f} by {self.protocol} ({figures}) on {self.score.cases} cases, "
            f"edited {in_words(self.scenario, self.batch_size)}"
        )
        if self.check is not None:
            where = f"on {self.check.winner.cases} other cases" if self.check.held_out else "on these"
            against = "" if self.check.untuned is None else f"untuned {self.check.untuned.value:.3f}"
            if self.check.held_out:
                text += f"; {self.check.winner.value:.3f} {where}" + (f" ({against})" if against else "")
            elif against:
                text += f" ({against} {where})"
        return text + ("; stopped early" if self.stopped else "")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: all that was tried, round by round."""
        return {
            "method": self.method,
            "model": {"name": self.model_name, **attrs.asdict(self.shape)},
            "scenario": self.scenario,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "protocol": self.protocol,
            "metrics": list(self.metrics),
            "missing": list(self.missing),
            "candidates": [{"number": each.number, "changes": dict(each.changes)} for each in self.candidates.tried],
            "refused": [{"changes": dict(each.changes), "reason": each.reason} for each in self.candidates.refused],
            "rounds": [
                {
                    "cases": each.cases,
                    "complete": each.complete,
                    "standings": [_standing(standing) for standing in each.standings],
                }
                for each in self.rounds
            ],
            "winner": {
                "number": self.winner.number,
                "changes": dict(self.winner.changes),
                "hparams": self.winner.hparams.to_dict(),
                **self.score.to_dict(),
            },
            "check": None
            if self.check is None
            else {
                "held_out": self.check.held_out,
                "winner": self.check.winner.to_dict(),
                "untuned": None if self.check.untuned is None else self.check.untuned.to_dict(),
            },
            "stopped": self.stopped,
            "edits": self.edits,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }


def in_words(scenario: Scenario, batch_size: int) -> str:
    """How facts are edited: ``each alone``."""
    if scenario == "single":
        return "each alone"
    if scenario == "batch":
        return f"in batches of {batch_size}"
    return "one after another" if batch_size == 1 else f"{batch_size} after {batch_size}"


def _standing(standing: Standing) -> dict[str, Any]:
    score: Mapping[str, Any] = {} if standing.score is None else standing.score.to_dict()
    return {"number": standing.number, "kept": standing.kept, "failed": standing.failed, **score}


def beside_defaults(hparams: HyperParams) -> dict[str, Any]:
    """The settings that differ from the method's defaults, and those that have none; as JSON has them."""
    values = hparams.to_dict()
    return {
        each.name: values[each.name]
        for each in attrs.fields(type(hparams))
        if each.init and (each.default is attrs.NOTHING or _default(each, hparams) != getattr(hparams, each.name))
    }


def _default(each: attrs.Attribute[Any], hparams: HyperParams) -> Any:
    default = each.default
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        factory: Any = default
        return factory.factory(hparams) if factory.takes_self else factory.factory()
    return default
