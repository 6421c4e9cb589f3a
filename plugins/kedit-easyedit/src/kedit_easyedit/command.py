"""``kedit import-hparams``: a settings file of EasyEdit for kedit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kedit_core.cli.common import emit, json_option, note, one_line, say, show_table, write_text
from kedit_core.cli.groups import catalogue
from kedit_core.cli.outputs import STDOUT, OutputPath, check_file

if TYPE_CHECKING:
    from kedit_easyedit.convert import Conversion

_TITLES = {
    "dropped": "Not needed:",
    "unsupported": "Not supported, so kedit does something else:",
    "unknown": "Not known:",
}


@click.command("import-hparams", short_help="Convert a settings file of EasyEdit.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--method", "-m", help="For this method of kedit, where the file fits several or names none.")
@click.option(
    "--training/--editing",
    "training",
    default=None,
    help="Of a method that is trained: what the settings are for; by default training, unless the file has an archive.",
)
@click.option("-o", "--output", type=OutputPath(dir_okay=False, path_type=Path), help="YAML file to write.")
@json_option
@click.pass_context
def import_hparams(
    ctx: click.Context, file: Path, method: str | None, training: bool | None, output: Path | None, json_to: str | None
) -> None:
    """Convert a settings file of EasyEdit (YAML or JSON) into one for kedit's --hparams, and tell what became of each
    of its keys."""
    from kedit_easyedit.convert import convert_file

    if output is not None:
        check_file("-o", output, "settings.yaml")
        if output.suffix.lower() not in (".yaml", ".yml"):
            raise click.BadParameter("the name must end in .yaml", param_hint="-o")
    found = convert_file(file, method=method, training=training, catalogue=catalogue(ctx))
    if output is not None:
        write_text(output, found.to_yaml())
    emit(json_to, found.to_dict, lambda: _show(found, file, output))
    if json_to != STDOUT:
        for remark in found.remarks:
            note(f"note: {remark}")


def _show(found: Conversion, file: Path, output: Path | None) -> None:
    from kedit_easyedit.convert import short

    say(f"{file.name}: {one_line(found.algorithm)} is {found.method} in kedit")
    converted = [each for each in found.told if each.outcome == "converted"]
    if converted:
        say()
        show_table(
            ("EasyEdit", "", "kedit", ""),
            [
                (
                    one_line(each.key),
                    short(each.value),
                    one_line(", ".join(f"{name}: {value}" for name, value in each.settings.items())),
                    each.why,
                )
                for each in converted
            ],
        )
    for outcome, title in _TITLES.items():
        rows = [
            (f"  {one_line(each.key)}", short(each.value), each.why) for each in found.told if each.outcome == outcome
        ]
        if rows:
            say()
            say(title)
            show_table(("", "", ""), rows)
    say()
    if not found.checked:
        note(f"note: {found.method} is not installed, so the settings could not be checked")
    if output is None:
        say(found.to_yaml().rstrip())
        return
    command = "train" if found.training else "edit"
    say(f"Wrote {output}: kedit {command} MODEL -m {found.method} --hparams {output} ...")
