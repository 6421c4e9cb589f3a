"""Methods for the tests, described: one that keeps the contract, and others that each break it in one way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from kedit_core import HyperParams, MethodInfo
from kedit_core.hparams import ModelShape


@frozen(kw_only=True)
class NudgeHyperParams(HyperParams):
    layer: int = 1
    strength: float = 8.0


@frozen(kw_only=True)
class DepthHyperParams(NudgeHyperParams):
    @classmethod
    def for_depth(cls, shape: ModelShape) -> Mapping[str, Any]:
        return {"layer": 0}


@frozen(kw_only=True)
class LaxHyperParams(NudgeHyperParams):
    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str | None = None) -> LaxHyperParams:
        return cls(**{key: value for key, value in values.items() if key in ("layer", "strength")})


def info(name: str, cls: str, hparams: type[Any] = NudgeHyperParams, **more: Any) -> MethodInfo:
    settings: dict[str, Any] = {
        "operations": {"low_rank_delta"},
        "scenarios": {"single", "batch", "sequential"},
        **more,
    }
    return MethodInfo(
        name=name,
        summary="a method for tests",
        family="toy",
        implementation=f"toy_implementations:{cls}",
        hparams=f"toy_methods:{hparams.__name__}",
        **settings,
    )


nudge = info("nudge", "Nudge")
nudge_one = info("nudge_one", "Nudge", scenarios={"single", "sequential"}, needs_subject=True)
mutates_weights = info("mutates_weights", "MutatesWeights")
leaves_a_hook = info("leaves_a_hook", "LeavesAHook")
not_deterministic = info("not_deterministic", "NotDeterministic")
accepts_unknown = info("accepts_unknown", "Nudge", LaxHyperParams)
emits_undeclared = info("emits_undeclared", "EmitsUndeclared")
fails_halfway = info("fails_halfway", "FailsHalfway")
extending = info("extending", "Nudge", state="extend")
returns_text = info("returns_text", "ReturnsText")
untidy_when_stopped = info("untidy_when_stopped", "UntidyWhenStopped")
droppable = info("droppable", "Droppable")
drops_nothing = info("drops_nothing", "DropsNothing")
drops_by_writing = info("drops_by_writing", "DropsByWriting")
chooses = info("chooses", "Chooses", DepthHyperParams)
chooses_by_writing = info("chooses_by_writing", "ChoosesByWriting", DepthHyperParams)
plans_by_writing = info("plans_by_writing", "PlansByWriting")
plans_oddly = info("plans_oddly", "PlansOddly")

ALL = (
    nudge,
    nudge_one,
    mutates_weights,
    leaves_a_hook,
    not_deterministic,
    accepts_unknown,
    emits_undeclared,
    fails_halfway,
    extending,
    returns_text,
    untidy_when_stopped,
    droppable,
    drops_nothing,
    drops_by_writing,
    chooses,
    chooses_by_writing,
    plans_by_writing,
    plans_oddly,
)
