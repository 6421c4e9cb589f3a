"""Trying a setting for real: edit, measure, take off again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from types import TracebackType
from typing import Any, Self

import torch
from attrs import evolve

from kedit_core.comparing.changes import change_of
from kedit_core.contract import MetricResult
from kedit_core.editing import Editor
from kedit_core.editing.progress import silent
from kedit_core.errors import InputError
from kedit_core.evaluation import items_of, resolve_protocol
from kedit_core.hparams import Resolved
from kedit_core.patches import EditPatch
from kedit_core.requests import EditRequest
from kedit_methods_locate.tuning.candidates import Candidate
from kedit_methods_locate.tuning.schedule import Group, Material
from kedit_methods_locate.tuning.scoring import Outcome


class Trials:
    """Edits with a candidate's settings on one Editor, which is as it was found when the block ends.

    One Editor for all, so that what follows from the base model alone (its answers, statistics, contexts) is read once.
    """

    def __init__(self, editor: Editor, given: Material, protocol: str, metrics: Sequence[str]) -> None:
        self.editor, self.given, self.metrics = editor, given, tuple(metrics)
        self.protocol = resolve_protocol(protocol).name
        self._settings, self._progress = editor.settings, editor.progress
        self._found = {entry.patch.id for entry in editor.stack.patches}
        self._norms: dict[str, float] = {}

    def __enter__(self) -> Self:
        self.editor.progress = silent  # one bar for the tuning, none for each of its edits
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()
        self.editor.settings, self.editor.progress = self._settings, self._progress

    def measure(self, candidate: Candidate, group: Group) -> Outcome:
        """Edit a group and measure it. Raises what the edit raises; the model is as before in any case."""
        self.editor.settings = _settings(self._settings, candidate)
        try:
            result = self.editor.edit(
                group.requests,
                scenario=self.given.scenario,
                batch_size=self.given.batch_size if self.given.scenario == "sequential" else 1,
                protocols=(self.protocol,),
            )
        finally:
            self._clear()
        evaluation: Mapping[str, MetricResult] = result.evaluation or {}
        found = {name: evaluation.get(f"{self.protocol}.{name}") for name in self.metrics}
        sizes = [size for patch in result.patches if (size := self._size(patch)) is not None]
        return Outcome(
            cases={name: tuple(metric.cases.values()) for name, metric in found.items() if metric is not None},
            edits=len(group),
            seconds=result.seconds,
            size=fmean(sizes) if sizes else None,
            warnings=Counter(warning.code for warning in result.warnings),
        )

    def _clear(self) -> None:
        """Take off whatever a trial has left on the model."""
        for entry in reversed(self.editor.stack.patches):
            if entry.patch.id not in self._found:
                self.editor.remove(entry.patch)

    def _size(self, patch: EditPatch) -> float | None:
        """Norm of the change relative to that of the weights changed; None where no weight is."""
        changed, whole = 0.0, 0.0
        for place in patch.base.tensors:
            if self.editor.stack.place(place).packed:
                return None
            base = self.editor.stack.base(place)
            change = change_of(place, patch, base.cpu())
            if change is not None:
                changed += change.norm**2
                whole += self._norm(place, base) ** 2
        return float((changed / whole) ** 0.5) if whole else None

    def _norm(self, place: str, base: torch.Tensor) -> float:
        if place not in self._norms:
            self._norms[place] = float(torch.linalg.vector_norm(base, dtype=torch.float64))
        return self._norms[place]


def asked_only(requests: Sequence[EditRequest], metrics: Sequence[str]) -> list[EditRequest]:
    """The requests without the probes that nobody scores, which would only cost time."""
    unasked: dict[str, Any] = {"generation_prompts": ()}
    for metric, name, nothing in (
        ("generalization", "rephrase_prompts", ()),
        ("locality", "locality", {}),
        ("portability", "portability", {}),
    ):
        if metric not in metrics:
            unasked[name] = nothing
    return [evolve(request, **unasked) for request in requests]


def probed(requests: Sequence[EditRequest], metrics: Sequence[str]) -> tuple[str, ...]:
    """Those of the metrics that some request has a probe for."""
    there = {item.metric for item in items_of(requests)}
    return tuple(metric for metric in metrics if metric in there)


def _settings(untuned: Resolved[Any] | None, candidate: Candidate) -> Resolved[Any]:
    if untuned is None:
        raise InputError("this Editor has no method, so there are no settings to tune; give it a method")
    return evolve(untuned, hparams=candidate.hparams)
