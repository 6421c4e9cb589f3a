"""The demo's report, for people."""

from __future__ import annotations

import shlex
import shutil
import sys
from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kedit_core.cli.common import console, human_bytes
from kedit_core.evaluation.report import format_value
from kedit_factworld.demo_run import same_answer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from kedit_factworld.demo_run import DemoReport

_INDENT = 3
_PORTABILITY = "these small models know two-hop answers by heart, so an edit need not move them (portability)"
_SHORT = 16  # hex digits of a digest that are shown


def show_report(report: DemoReport) -> None:
    """Print the report: the fact, what the edit did, the patch, and the proof."""
    out = console()
    millions = report.parameters / 1e6
    out.print(Text(f"kedit demo: {report.model} ({millions:.1f} M parameters, {report.dtype}, CPU), offline", "bold"))
    _section(out, "1. What the model believes", _fact(report))
    _section(out, f"2. Edited with ROME: the answer shall be {report.case.target_new}", _readings(report))
    _section(out, "3. Measured on all probes of this case", _metrics(report))
    for remark in (_PORTABILITY, *report.warnings) if report.case.portability.get("one_hop") else report.warnings:
        out.print(Padding.indent(Text(f"note: {remark}", "dim"), _INDENT))
    _section(out, "4. The edit as a file, on a freshly loaded copy of the model", _elsewhere(report))
    _section(out, "5. And off again: SHA-256 over all weights", _digests(report))
    out.print()
    for claim in report.claims:
        mark = ("yes", "green") if claim.holds else (" NO", "bold red")
        out.print(Text.assemble(mark, "  ", claim.text))
    out.print()
    out.print(Text(f"Done in {report.seconds:.1f} s. Try it yourself:"))
    for command in _next_commands(report):
        out.print(Text(f"  {command}", "cyan"), soft_wrap=True)


def _section(out: Console, title: str, body: RenderableType) -> None:
    out.print()
    out.print(Text(title, "bold"))
    out.print(Padding.indent(body, _INDENT))


def _table(*columns: str) -> Table:
    """A plain table without lines; without column names it has no header."""
    named = any(columns)
    return Table(*columns, box=None, show_header=named, pad_edge=False, header_style="dim")


def _fact(report: DemoReport) -> RenderableType:
    fact = report.readings[0]
    return Text.assemble(fact.prompt, " ... ", (fact.before or "(nothing)", "bold"))


def _readings(report: DemoReport) -> RenderableType:
    table = _table("", "prompt", "before", "after", "")
    for reading in report.readings:
        good = same_answer(reading.after, reading.wanted)
        verdict = Text("as wanted", "green") if good else Text(f"wanted {reading.wanted}", "yellow")
        after = Text(reading.after or "(nothing)", "bold")
        table.add_row(Text(reading.role, "dim"), Text(reading.prompt), Text(reading.before), after, verdict)
    return table


def _metrics(report: DemoReport) -> RenderableType:
    table = _table("", "")
    table.columns[1].justify = "right"
    for name, result in report.evaluation.metrics.items():
        table.add_row(Text(name), Text(format_value(result.value, result.unit)))
        if result.unit == "share" and len(result.parts) > 1:
            for part, value in result.parts.items():
                table.add_row(Text(f"  {part}", "dim"), Text(format_value(value, result.unit), "dim"))
    return table


def _elsewhere(report: DemoReport) -> RenderableType:
    table = _table("", "")
    size = f"{report.patch_bytes:,} bytes ({human_bytes(report.patch_bytes)})"
    table.add_row("patch file", Text.assemble((str(report.patch), "bold"), f", {size}"))
    table.add_row("as loaded", Text(report.elsewhere.loaded))
    table.add_row("patch applied", Text(report.elsewhere.patched, "bold"))
    table.add_row("patch removed", Text(report.elsewhere.removed))
    return table


def _digests(report: DemoReport) -> RenderableType:
    digests, table = report.digests, _table("", "", "")
    rows = (
        ("before the edit", digests.start, ""),
        ("edited", digests.edited, ""),
        (
            "edit removed",
            digests.restored,
            "same as before the edit" if digests.restored == digests.start else "DIFFERS",
        ),
    )
    for name, digest, verdict in rows:
        style = "bold red" if verdict == "DIFFERS" else "green"
        table.add_row(name, Text(f"{digest[:_SHORT]}..."), Text(verdict, style))
    return table


def _next_commands(report: DemoReport) -> list[str]:
    patch = shlex.quote(str(report.patch))
    # in a virtual environment that is not active, only the path of the script works
    kedit = "kedit" if shutil.which("kedit") else shlex.quote(sys.argv[0])
    return [
        f"{kedit} patch show {patch}",
        f'{kedit} generate {report.model} --patch {patch} --prompt "{report.case.prompt}"',
    ]
