"""What ``kedit tune`` shows: the table of what was tried, the choice, and the check. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from kedit_core.cli.common import say, show_table
from kedit_methods_locate.tuning.candidates import Candidate
from kedit_methods_locate.tuning.record import Tuning
from kedit_methods_locate.tuning.scoring import Score

_LONGEST = 60  # letters of a reason


def show(found: Tuning, output: Path | None) -> None:
    """Print a tuning."""
    head = ["settings", "cases", "score", *found.metrics, "size", "s/edit", ""]
    rows = [
        _row(found, candidate) for candidate in sorted(found.candidates.tried, key=lambda each: _place(found, each))
    ]
    rows += [[each.label, *_nothing(found), f"refused: {_short(each.reason)}"] for each in found.candidates.refused]
    show_table(head, rows)
    say()
    if found.stopped:
        say(f"stopped early ({'the budget is spent' if found.stopped == 'budget' else 'interrupted'}): the best so far")
    say(f"chosen: {found.winner.label}")
    _show_check(found)
    if found.score.value == 0:
        say("no setting did well in everything that is scored; try others, or score less (--score reliability)")
    say(f"{found.edits} edits in {found.seconds:.0f} s")
    if output is not None:
        say(f"\nthe preset is in {output}; use it with --preset {output}")
    else:
        say("no preset was written; give -o FILE.yaml")


def _row(found: Tuning, candidate: Candidate) -> list[str]:
    """A candidate's figures of the last round that it has any of, and what became of it."""
    last = found.last_standing(candidate.number)
    if last is None:
        return [candidate.label, *_nothing(found), "not reached"]
    number, standing = last
    if standing.score is None:
        return [candidate.label, *_nothing(found), f"failed: {_short(standing.failed or '')}"]
    if candidate is found.winner:
        fate = "chosen"
    else:
        fate = f"out in round {number + 1}" if not found.stopped else f"round {number + 1}"
    return [candidate.label, *_figures(found, standing.score), fate]


def _figures(found: Tuning, score: Score) -> list[str]:
    return [
        str(score.cases),
        f"{score.value:.3f}",
        *("-" if name not in score.metrics else f"{score.metrics[name]:.3f}" for name in found.metrics),
        "-" if score.size is None else f"{score.size:.2g}",
        f"{score.seconds:.2g}",
    ]


def _nothing(found: Tuning) -> list[str]:
    return ["-"] * (4 + len(found.metrics))


def _place(found: Tuning, candidate: Candidate) -> tuple[float, ...]:
    """The chosen one first, then those that came furthest, by their score; failed ones last."""
    last = found.last_standing(candidate.number)
    if last is None or last[1].score is None:
        return (2.0, 0.0, candidate.number)
    return (float(candidate is not found.winner), -last[0], *last[1].score.key, candidate.number)


def _show_check(found: Tuning) -> None:
    check = found.check
    if check is None:
        say(
            "it was not held against the untuned settings on other cases"
            if found.winner.number
            else "nothing was better"
        )
        return
    cases = check.winner.cases
    where = f"on {cases} cases that nobody was chosen by" if check.held_out else f"on the same {cases} cases"
    untuned = "the untuned settings failed" if check.untuned is None else f"untuned {check.untuned.value:.3f}"
    say(f"{where}: score {check.winner.value:.3f}, {untuned}")
    if found.winner.number and check.untuned is not None and check.untuned.value >= check.winner.value:
        say("there it did no better than the untuned settings: take more cases (--cases) before you trust it")


def _short(reason: str) -> str:
    text = " ".join(reason.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
