"""What the processes of a benchmark tell each other about the parts of a cell."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

from kedit_bench.cells import Cell
from kedit_bench.distributed import Company
from kedit_bench.groups import Bench
from kedit_bench.state import CellState
from kedit_core.errors import InputError, KeditError
from kedit_core.requests import EditRequest

_SEEN_LATER = 30.0  # seconds until what another machine wrote is seen on a network's disk


class FailedElsewhere(KeditError):
    """A part failed in another process, which wrote down where the error came from."""


def plan_digest(cells: Sequence[Cell]) -> str:
    """What stands for a plan: the leader's and everybody's must be one."""
    return hashlib.sha256(json.dumps([[str(cell), len(cell.requests)] for cell in cells]).encode()).hexdigest()


def same_plan(cells: Sequence[Cell], told: str) -> None:
    """Raise InputError when the leader has other cells."""
    if plan_digest(cells) != told:
        raise InputError("the processes have different benchmarks before them; give all the same command and files")


def unfinished(state: CellState, company: Company, total: int) -> int:
    """The first part of this process's share that is not on disk: there it failed; ``total + 1`` when all are."""
    own = (number for number in range(1, total + 1) if company.mine(number, total))
    return next((number for number in own if state.part(number) is None), total + 1)


def answer(number: int, company: Company, part: int | None = None, error: str = "") -> None:
    """Tell the leader that this process's share of cell ``number`` is done, or at which part it failed."""
    company.say(f"cell {number} of {company.rank}", json.dumps({"part": part, "error": error}))


def failure_of(number: int, company: Company) -> list[tuple[int, Exception]]:
    """Wait for all others to be done with their shares of a cell; what failed, with the part. Raises LostError."""
    found: list[tuple[int, Exception]] = []
    for rank in company.others:
        told = json.loads(company.hear(f"cell {number} of {rank}", rank))
        if told["part"] is not None:
            found.append((told["part"], FailedElsewhere(told["error"])))
    return found


def gathered(bench: Bench, parts: Sequence[Sequence[EditRequest]], company: Company) -> list[dict[str, Any]]:
    """Every part's record, from the folder that all have written to. Raises KeditError when one is not there."""
    found = []
    until = time.monotonic() + _SEEN_LATER
    for number, requests in enumerate(parts, start=1):
        while (record := bench.state.part(number)) is None:
            if time.monotonic() > until:
                raise KeditError(
                    f"part {number}, which another process has finished, is not in {bench.state.folder}; all processes "
                    "need one folder in common"
                )
            time.sleep(0.1)
        found.append(record)
        if not company.mine(number, len(parts)):
            bench.advance(len(requests), True)
    return found
