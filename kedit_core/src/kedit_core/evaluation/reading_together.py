"""Questions about many edits that were made apart, read together: each row of a batch under its own edit."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from kedit_core.evaluation.questions import Questions, read_all
from kedit_core.patches.row_branches import RowBranches


def read_together(branches: RowBranches, asked: Sequence[Questions]) -> list[dict[tuple[Hashable, Hashable], Any]]:
    """The answers to each edit's questions, as :meth:`Answers.supply` takes them.

    Args:
        branches: of the edits' patches.
        asked: the questions about each, noted by one :class:`Answers` of the model without these patches.
    """
    return read_all(asked, branches.on)
