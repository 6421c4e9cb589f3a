"""Questions about many edits that were made apart, read together: each row of a batch under its own edit."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from kedit_core.evaluation.questions import Questions
from kedit_core.patches.row_branches import RowBranches


def read_together(branches: RowBranches, asked: Sequence[Questions]) -> list[dict[tuple[Hashable, Hashable], Any]]:
    """The answers to each edit's questions, as :meth:`Answers.supply` takes them.

    Args:
        branches: of the edits' patches.
        asked: the questions about each, noted by one :class:`Answers` of the model without these patches.
    """
    found: list[dict[tuple[Hashable, Hashable], Any]] = [{} for _ in asked]
    kinds = {kind: read for questions in asked for kind, (read, _) in questions.kinds.items()}
    for kind, read in kinds.items():
        rows = [(edit, item) for edit, each in enumerate(asked) if kind in each.kinds for item in each.kinds[kind][1]]
        with branches.on([edit for edit, _ in rows]):
            values = read([item for _, item in rows])
        for (edit, item), value in zip(rows, values, strict=True):
            found[edit][kind, item] = value
    return found
