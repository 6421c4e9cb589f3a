"""Measured results for a card: read from what ``kedit edit --json`` or ``kedit evaluate --json`` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from kedit_core.errors import InputError
from kedit_core.evaluation import Evaluation
from kedit_core.evaluation.report import format_value
from kedit_core.files import read_bounded
from kedit_hub.records import strict_json

_LARGEST = 256 << 20  # bytes: answers of every probe are in the file


@frozen(kw_only=True)
class Result:
    """One measured number.

    Attributes:
        metric: its name, and the part of it where it is one.
        value: with its unit.
        cases: how many cases it is over; empty for a part that is a statistic.
        tag: protocol, scenario and number of edits that it belongs to.
    """

    metric: str
    value: str
    cases: str
    tag: str


@frozen(kw_only=True)
class Results:
    """What was measured, and with how many other patches on the model."""

    rows: tuple[Result, ...]
    others: int

    @classmethod
    def read(cls, path: Path, patch_id: str) -> Results:
        """The results in a file.

        Raises InputError when it is none of kedit's, or is about other patches.
        """
        try:
            data = read_bounded(path, _LARGEST)
        except OSError as error:
            raise InputError(f"the results {path} could not be read: {error.strerror or error}") from error
        try:
            return _results(strict_json(data), patch_id)
        except InputError as error:
            raise InputError(
                f"{path} does not hold results of this patch: {error}; give what `kedit edit --json FILE` or "
                "`kedit evaluate --json FILE` wrote for it"
            ) from None


def _results(data: Any, patch_id: str) -> Results:
    if not isinstance(data, dict):
        raise InputError("it is not a JSON object")
    edit = data if "evaluation" in data else {}
    evaluation = Evaluation.from_dict(data["evaluation"] if edit else data)
    if not isinstance(evaluation.manifest, dict):
        raise InputError("its manifest is not a JSON object")
    measured = _ids(evaluation.manifest.get("patches"))
    named = {edit["patch"]} if isinstance(edit.get("patch"), str) else measured
    if patch_id not in named | measured:
        said = ", ".join(sorted(each[:12] for each in named)) or "no patch"
        raise InputError(f"it is about {said}, not about {patch_id[:12]}")
    rounds = _ids(edit.get("patches")) if edit.get("patch") == patch_id else set()
    return Results(rows=tuple(_rows(evaluation)), others=len(measured - rounds - {patch_id}))


def _ids(value: Any) -> set[str]:
    return {each for each in value if isinstance(each, str)} if isinstance(value, list) else set()


def _rows(evaluation: Mapping[str, Any]) -> list[Result]:
    rows = []
    for name, result in evaluation.items():
        shown = format_value(result.value, result.unit)
        rows.append(Result(metric=name, value=shown, cases=str(len(result.cases)), tag=result.tag))
        for part, value in result.parts.items():
            count = "" if part in result.statistics else str(len(result.case_parts.get(part, ())))
            rows.append(
                Result(metric=f"{name}: {part}", value=format_value(value, result.unit), cases=count, tag=result.tag)
            )
    return rows
