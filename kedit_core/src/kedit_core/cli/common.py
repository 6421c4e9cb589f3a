"""What the commands share: the ``--json`` option, tables, progress on a terminal and silence in a pipe."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from kedit_core.cli.outputs import STDOUT, OutputPath, check_file, refuse_overlaps
from kedit_core.files import replacing

if TYPE_CHECKING:
    from rich.console import Console

    from kedit_core.editing.progress import Step

F = TypeVar("F", bound=Callable[..., Any])

# C0 but tab and line feed, DEL, C1 (0x9b begins a sequence as ESC [ does), and what reorders or separates lines
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_WIDE = 10_000  # columns of a pipe: nothing is wrapped or cut there


def json_option(command: F) -> F:
    """Add ``--json [FILE]``; the command gets ``json_to``: None, ``"-"`` or a path, to hand to :func:`emit`.

    A command that has it also refuses to write over what it reads; see :func:`kedit_core.cli.outputs.refuse_overlaps`.
    """

    @functools.wraps(command)
    def checked(*args: Any, **kwargs: Any) -> Any:
        refuse_overlaps(click.get_current_context())
        return command(*args, **kwargs)

    return cast(F, _json_option(checked))


def _json_option(command: F) -> F:
    return click.option(
        "--json",
        "json_to",
        metavar="[FILE]",
        is_flag=False,
        flag_value=STDOUT,
        default=None,
        type=OutputPath(),
        callback=_writable,
        help="Write the result as JSON to FILE, or to stdout instead of text.",
    )(command)


def _writable(context: click.Context, parameter: click.Parameter, json_to: str | None) -> str | None:
    """Refuse a file that cannot be written before the work is done, not after it."""
    if json_to is None or json_to == STDOUT or context.resilient_parsing:
        return json_to
    check_file("--json", Path(json_to))
    return json_to


def emit(json_to: str | None, data: Callable[[], Any], text: Callable[[], None]) -> None:
    """Show a result: as text, as JSON on stdout, or as text with the JSON in a file."""
    if json_to == STDOUT:
        click.echo(as_json(data()))
        return
    if json_to is not None:
        write_text(Path(json_to), as_json(data()) + "\n")
    text()


def as_json(data: Any) -> str:
    """JSON with the keys in the order given; NaN is refused. What a terminal would obey is written as an escape."""
    return _OBEYED.sub(
        lambda found: f"\\u{ord(found[0]):04x}", json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    )


def harmless(text: str) -> str:
    """``text`` with control characters made visible: a file that we show must not steer the terminal it is shown on.

    Line ends and tabs stay. What turns the order of letters round is made visible, too.
    """
    return _OBEYED.sub(
        lambda found: f"\\u{ord(found[0]):04x}" if ord(found[0]) > 255 else f"\\x{ord(found[0]):02x}", text
    )


def one_line(text: str) -> str:
    """As :func:`harmless`, line ends too: a text from a file cannot look like a line of ours."""
    return harmless(text).replace("\n", "\\n").replace("\t", "\\t")


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step; see :func:`kedit_core.files.replacing`."""
    with replacing(path) as stream:
        stream.write(text.encode())


def console(*, err: bool = False) -> Console:
    """A rich console on stdout (or stderr) that wraps for a terminal and never for a pipe."""
    from rich.console import Console

    stream = sys.stderr if err else sys.stdout
    width = None if stream.isatty() else _WIDE
    return Console(file=stream, width=width, highlight=False)


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
    """Print a table; text is shown as it is, never read as rich markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(harmless(cell)) for cell in row))
    screen = console()
    with screen.capture() as captured:
        screen.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def say(text: str = "") -> None:
    """A line for people on stdout; see :func:`harmless`."""
    click.echo(harmless(text))


def note(text: str) -> None:
    """A line for people that is not the result: on stderr; see :func:`harmless`."""
    click.echo(harmless(text), err=True)


def human_bytes(size: float) -> str:
    """``4321`` -> ``4.3 kB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


class _Bar:
    def __init__(self, bars: Any, task: Any) -> None:
        self._bars, self._task = bars, task

    def advance(self, amount: float = 1) -> None:
        self._bars.advance(self._task, amount)

    def describe(self, text: str) -> None:
        self._bars.update(self._task, description=text)


@contextmanager
def progress(description: str, total: float | None = None) -> Iterator[Step]:
    """A progress bar on stderr when that is a terminal, nothing otherwise (see kedit_core.editing.progress)."""
    from kedit_core.editing.progress import silent

    if not sys.stderr.isatty():
        with silent(description, total) as step:
            yield step
        return
    from rich.progress import Progress

    with Progress(console=console(err=True), transient=True) as bars:
        yield _Bar(bars, bars.add_task(description, total=total))
