"""``kedit demo``: the main job once through, offline: a fact before, the edit, after, the patch, and no trace left."""

from __future__ import annotations

import difflib
from pathlib import Path

import click

from kedit_core.cli.common import emit, json_option, progress
from kedit_core.errors import InputError, KeditError, UnknownNameError
from kedit_core.requests import EditRequest
from kedit_factworld import files

DEFAULT_MODEL = "factworld:llama"
DEFAULT_CASE = "fw-0189"
DEFAULT_OUTPUT = Path("kedit-demo.safetensors")


def find_case(case_id: str) -> EditRequest:
    """A shipped edit case by its id. Raises UnknownNameError with the nearest ids."""
    from kedit_factworld.plugin import edit_cases

    cases = {case.case_id or case.id: case for case in edit_cases()}
    if case_id not in cases:
        near = difflib.get_close_matches(case_id, cases, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"ids run from {min(cases)} to {max(cases)}"
        raise UnknownNameError(f"there is no FactWorld case {case_id!r}; {hint}")
    return cases[case_id]


@click.command()
@click.option(
    "--model",
    type=click.Choice([files.PREFIX + kind for kind in files.MODELS]),
    default=DEFAULT_MODEL,
    show_default=True,
    help="Which of the two embedded models.",
)
@click.option("--case", "case_id", metavar="ID", default=DEFAULT_CASE, show_default=True, help="fw-0001 ... fw-0300.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=DEFAULT_OUTPUT,
    show_default=True,
    help="Where the patch goes.",
)
@json_option
def demo(model: str, case_id: str, output: Path, json_to: str | None) -> None:
    """Change a fact in a small real model, save the patch, apply it elsewhere, take it off without a trace.

    Offline, on the CPU, in seconds. Exit code 1 if anything the demo claims does not hold.
    """
    case = find_case(case_id)
    if not output.absolute().parent.is_dir():
        raise InputError(f"-o {output}: the folder {output.absolute().parent} does not exist; make it first")
    from kedit_factworld.demo_run import one_thread, run_demo
    from kedit_factworld.demo_view import show_report

    with progress("loading", total=None) as step, one_thread():
        report = run_demo(model, case, output, step.describe)
    emit(json_to, report.to_dict, lambda: show_report(report))
    if not report.holds:
        failed = "; ".join(claim.text for claim in report.claims if not claim.holds)
        raise KeditError(f"the demo did not do what it says: not true that {failed}")
