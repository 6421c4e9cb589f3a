"""What ``kedit bench --compare`` shows and writes."""

from __future__ import annotations

from pathlib import Path

from kedit_bench.compare import Comparison, Difference, Pair, Side, compare
from kedit_bench.report.comparison import write_comparison
from kedit_bench.report.difference import change_text, interval_text, p_text, value_text
from kedit_core.cli.common import as_json, emit, note, say, show_table, write_text
from kedit_core.errors import InputError

__all__ = ["run_comparison", "show_comparison", "write_comparison"]

JSON_FILE, PAGE_FILE = "comparison.json", "comparison.html"
_SIGNS = {"better": "▲ better", "worse": "▼ worse", "higher": "↑ higher", "lower": "↓ lower", None: ""}


def run_comparison(sides: tuple[str, str], output: Path | None, json_to: str | None) -> None:
    """Compare two sides (each a folder or ``FOLDER:METHOD``), show the result, write it where asked.

    ``output`` is a file that ends in .html, or a folder for the page and its JSON. Raises InputError.
    """
    a, b = (Side.parse(side) for side in sides)
    found = compare(a.bench, b.bench, method_a=a.method, method_b=b.method)
    if not found.pairs and not found.unmatched:
        raise InputError(f"{a.text} and {b.text} have no cells; give folders of benches that ran")
    if output is not None:
        for path in write_files(found, sides, output):
            note(f"written: {path}")
    emit(json_to, found.to_dict, lambda: show_comparison(found, sides))


def write_files(found: Comparison, sides: tuple[str, str], output: Path) -> list[Path]:
    """Write the page, and beside it the JSON where ``output`` is a folder; what was written. Raises OSError."""
    if output.suffix.lower() == ".html":
        write_comparison(found, output, names=sides)
        return [output]
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / JSON_FILE, as_json(found.to_dict()) + "\n")
    write_comparison(found, output / PAGE_FILE, names=sides)
    return [output / JSON_FILE, output / PAGE_FILE]


def show_comparison(found: Comparison, sides: tuple[str, str]) -> None:
    """Print a comparison: a table for each pair of cells, then what could not be compared, and why."""
    say(f"A: {sides[0]}\nB: {sides[1]}\n")
    for pair in found.pairs:
        _show_pair(pair, found.level)
        say()
    for sentence in found.unmatched:
        say(f"not compared: {sentence}")
    if found.pairs:
        say(
            f"B less A over the cases that both have; intervals of {found.level:.0%} by {found.samples:,} paired "
            "bootstrap samples, p by flipping signs (not corrected for how many metrics there are); marked where both "
            "say that it is more than chance."
        )


def _show_pair(pair: Pair, level: float) -> None:
    columns = ("metric", "A", "B", "B - A", f"{level:.0%} interval", "p", "pairs", "")
    title = f"{pair.label} on {pair.model}, {pair.dataset}, {pair.scenario}"
    show_table(columns, [_row(each, pair) for each in pair.differences], title=title)
    for reason, metrics in pair.reasons.items():
        say(f"  not compared ({reason}): {', '.join(metrics)}")


def _row(found: Difference, pair: Pair) -> tuple[str, ...]:
    name = found.metric if found.part is None else pair.part_called(found)
    unpaired = found.only_a + found.only_b
    return (
        f"  {name}" if name == found.part else name,
        value_text(found.a, found.unit),
        value_text(found.b, found.unit),
        change_text(found.difference, found.unit),
        interval_text(found),
        p_text(found.p),
        f"{found.pairs}" + (f" (-{unpaired})" if unpaired else ""),
        _SIGNS[found.verdict],
    )
