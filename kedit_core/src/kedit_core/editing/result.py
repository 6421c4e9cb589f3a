"""What an edit returns."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from kedit_core.contract import Scenario, Way
from kedit_core.editing.context import EditWarning
from kedit_core.errors import InputError
from kedit_core.evaluation import Evaluation
from kedit_core.hparams import Resolved
from kedit_core.patches import EditPatch
from kedit_core.requests import EditRequest


@frozen(kw_only=True, repr=False)
class EditResult:
    """An edit: its patches and what they did. Holds no live weights, so it stays true whatever happens to the model.

    Attributes:
        patches: one per round (``single``: one per case).
        joined: the rounds as one patch, the one that is on the model (None in ``single`` with several cases).
        evaluation: metrics, or None when not asked for.
        warnings: what the user should know.
        seconds: wall time of the whole call.
    """

    scenario: Scenario
    way: Way
    requests: tuple[EditRequest, ...]
    patches: tuple[EditPatch, ...]
    joined: EditPatch | None
    hparams: Resolved[Any] | None
    evaluation: Evaluation | None
    warnings: tuple[EditWarning, ...] = ()
    seconds: float = field(default=0.0, eq=False)

    def __repr__(self) -> str:
        count = len(self.requests)
        warned = f", {len(self.warnings)} warning{'s' * (len(self.warnings) != 1)}" if self.warnings else ""
        made = f"{len(self.patches)} patch{'es' * (len(self.patches) != 1)}"
        facts = f"{count} request{'s' * (count != 1)}"
        return f"<EditResult {self.scenario}, {facts}, {made}{warned}: {self.evaluation!r}>"

    @property
    def patch(self) -> EditPatch:
        """The edit as one patch. Raises InputError for ``single`` with several cases: these are separate edits."""
        if self.joined is None:
            raise InputError(
                f"scenario 'single' made {len(self.patches)} separate patches; take them from result.patches, "
                "or edit with scenario='batch' or 'sequential'"
            )
        return self.joined

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what ``kedit edit --json`` writes."""
        return {
            "scenario": self.scenario,
            "way": self.way,
            "patches": [patch.id for patch in self.patches],
            "patch": self.joined.id if self.joined else None,
            "hparams": self.hparams.to_dict() if self.hparams else None,
            "warnings": [
                {"code": w.code, "message": w.message, "number": w.number, "remedy": w.remedy} for w in self.warnings
            ],
            "seconds": self.seconds,
            "evaluation": self.evaluation.to_dict() if self.evaluation else None,
        }
