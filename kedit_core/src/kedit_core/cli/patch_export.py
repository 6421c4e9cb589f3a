"""``kedit patch export``: patches in a format that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kedit_core.cli.common import emit, json_option, note, say, show_table
from kedit_core.cli.groups import catalogue
from kedit_core.cli.model_options import keys_option, read_patches
from kedit_core.cli.outputs import OutputPath
from kedit_core.cli.patch_files import PATCH_FILE
from kedit_core.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kedit_core.contract import ExporterInfo, ExportReport
    from kedit_core.patches import EditPatch
    from kedit_core.plugins import Host

_INSTALL = "formats come with plugins: pip install kedit-peft has peft and gguf-lora"


def _formats(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    exporters = _host(ctx).exporters()
    if not exporters:
        raise UnknownNameError(f"no export format is installed; {_INSTALL}")
    for exporter in exporters:
        say(f"{exporter.name} (a {exporter.writes}): {exporter.summary}")
        width = max(map(len, exporter.options), default=0)
        for name, text in exporter.options.items():
            say(f"  -p {name + '=...':{width + 4}}  {text}")
    ctx.exit()


@click.command(short_help="Write patches in a format that other programs read.")
@click.argument("files", metavar="PATCH...", nargs=-1, required=True, type=PATCH_FILE)
@click.option("--to", "name", metavar="FORMAT", required=True, help="The format; --formats lists them.")
@click.option("-o", "--output", required=True, type=OutputPath(path_type=Path), help="Folder or file to write; new.")
@click.option("-p", "given", multiple=True, metavar="KEY=VALUE", help="One option of the format.")
@click.option(
    "--formats",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_formats,
    help="List formats and their options, and do nothing.",
)
@keys_option
@json_option
@click.pass_context
def export(
    ctx: click.Context,
    files: tuple[Path, ...],
    name: str,
    output: Path,
    given: tuple[str, ...],
    keys: tuple[Path, ...],
    json_to: str | None,
) -> None:
    """Write patches in a format that other programs read, such as a PEFT adapter.

    Several patches of one base are written as one thing that does what they do together, in the order given.
    """
    exporter = _exporter(ctx, name)
    options = _options(given)
    from kedit_core.patches.exporting import export_patches

    patches = read_patches(files, keys)
    report = export_patches(patches, exporter, output, options)
    emit(json_to, lambda: _data(exporter, output, patches, report), lambda: _show(exporter, output, report))


def _host(ctx: click.Context) -> Host:
    from kedit_core.plugins import Host

    return Host(catalogue(ctx))


def _exporter(ctx: click.Context, name: str) -> ExporterInfo:
    try:
        return _host(ctx).exporter(name)
    except UnknownNameError as error:
        raise UnknownNameError(f"{error}; {_INSTALL}") from error


def _options(given: Sequence[str]) -> dict[str, Any]:
    from kedit_core.hparams import parse_override

    options: dict[str, Any] = {}
    for text in given:
        key, value = parse_override(text)
        if key in options:
            raise InputError(f"-p {key} is given twice; give it once")
        options[key] = value
    return options


def _largest(report: ExportReport) -> tuple[str, float] | None:
    return max(report.errors.items(), key=lambda item: item[1], default=None)


def _data(exporter: ExporterInfo, output: Path, patches: Sequence[EditPatch], report: ExportReport) -> dict[str, Any]:
    largest = _largest(report)
    return {
        "format": exporter.name,
        "output": str(output),
        "patches": [patch.id for patch in patches],
        "errors": dict(report.errors),
        "largest_error": None if largest is None else largest[1],
        "details": dict(report.details),
        "notes": list(report.notes),
    }


def _show(exporter: ExporterInfo, output: Path, report: ExportReport) -> None:
    told = ", ".join(f"{key} {value}" for key, value in report.details.items() if isinstance(value, str | int | float))
    say(f"Wrote {output} ({', '.join(filter(None, (exporter.name, told)))})")
    largest = _largest(report)
    if largest is not None:
        show_table(("weight", "relative error"), [(place, _shown(error)) for place, error in report.errors.items()])
        if largest[1] > 0:
            say(f"largest relative error (Frobenius): {_shown(largest[1])} at {largest[0]}")
    for text in report.notes:
        note(f"note: {text}")


def _shown(error: float) -> str:
    return f"{error:.2e}" if error else "0"
