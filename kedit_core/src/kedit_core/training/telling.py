"""What a finished editor's ``state.json`` says of its training."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from kedit_core.requests import EditRequest
from kedit_core.training.base import BaseTrainer
from kedit_core.training.context import TrainingContext
from kedit_core.training.outcome import Outcome
from kedit_core.training.processes import Processes
from kedit_core.training.settings import TrainingHyperParams


def origin_of(
    context: TrainingContext, trainer: BaseTrainer[Any], base: Mapping[str, Any], hparams: TrainingHyperParams
) -> dict[str, Any]:
    """What the editor is made from; also what a run must share with one that it resumes. No path: digests."""
    return {
        "method": {
            "name": context.method.name if context.method else None,
            "distribution": context.method_distribution,
            "version": context.method_version,
        },
        "base": dict(base),
        "hparams": hparams.lasting(),
        "data": {"training": _data(context.requests), "validation": _data(context.validation)},
        "resources": context.resources_used,
        "origin": dict(trainer.origin()),
        "seed": context.seed,
    }


def _data(requests: Sequence[EditRequest]) -> dict[str, Any]:
    rows = [attrs.asdict(request) for request in requests]
    text = json.dumps(rows, sort_keys=True, ensure_ascii=False)
    return {"records": len(requests), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def trained(outcome: Outcome, hparams: TrainingHyperParams) -> dict[str, Any]:
    found: dict[str, Any] = plain(
        {
            "iterations": outcome.iterations,
            "updates": outcome.updates,
            "best_iteration": outcome.best_iteration,
            "key": hparams.early_stop_key,
            "best": outcome.best,
            "values": dict(outcome.best_values),
            "stopped_early": outcome.stopped_early,
            "skipped": outcome.skipped,
        }
    )
    return found


def plain(value: Any) -> Any:
    """JSON with None for what is no number: a measurement may be none where the training goes on."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cost_of(outcome: Outcome, trainer: BaseTrainer[Any], processes: Processes) -> dict[str, Any]:
    """What the training took, of the first process; the editor's size is added when it is written."""
    return {
        "seconds": outcome.seconds,
        "seconds_per_iteration": outcome.step_seconds / outcome.iterations if outcome.iterations else None,
        "peak_memory_bytes": outcome.peak_bytes,
        "parameters": sum(tensor.numel() for tensor in trainer.parameters().values()),
        "device": str(next(iter(trainer.parameters().values())).device),
        "processes": processes.count,
    }
