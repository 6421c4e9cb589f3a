"""``kedit patch show``: what a patch says and changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kedit_core.cli.common import emit, human_bytes, json_option, one_line, say, show_table
from kedit_core.cli.patch_files import PATCH_FILE

_SHOWN = 20


@click.command(short_help="Tell what a patch says and changes.")
@click.argument("file", metavar="PATCH", type=PATCH_FILE)
@json_option
def show(file: Path, json_to: str | None) -> None:
    """Tell what a patch says: its facts, what it changes and how much, and what it was made for."""
    from kedit_core.cli.describe import description
    from kedit_core.patches import EditPatch

    data = description(EditPatch.load(file))
    emit(json_to, lambda: data, lambda: _show(data))


def _show(data: dict[str, Any]) -> None:
    method, base = data["method"], data["base"]
    rows = [
        ("base", " ".join(filter(None, (base["architecture"], base["name"], base["revision"])))),
        ("method", f"{method['name']} ({method['distribution']} {method['version']})"),
        ("seed", "none" if data["seed"] is None else str(data["seed"])),
        *[("on top of", parent) for parent in data["parents"]],
        *[("needs", " ".join(filter(None, (need["role"], need["name"])))) for need in data["requires"]],
        *_made_with(data["state"]["config"].get("resources")),
    ]
    if data["state"]["bytes"]:
        rows.append(("state", f"{human_bytes(data['state']['bytes'])} of the method's own, never put on a model"))
    rows += [("setting", one_line(f"{name} = {value}")) for name, value in data["hparams"].items()]
    say(f"patch {data['id']} ({human_bytes(data['bytes'])})\n")
    _show_requests(data["requests"])
    say()
    operations = [
        (each["type"], "\n".join(each["places"]), each["detail"], each["size"], each["norm"])
        for each in map(_operation_cells, data["operations"])
    ]
    show_table(("operation", "place", "", "size", "norm"), operations)
    show_table(("", ""), rows)


def _made_with(resources: Any) -> list[tuple[str, str]]:
    """Files that the edit was computed with (a trained editor), by what their digests begin with."""
    known = resources.items() if isinstance(resources, dict) else ()
    return [("made with", one_line(f"{role} {str(digest)[:12]}")) for role, digest in known]


def _operation_cells(operation: dict[str, Any]) -> dict[str, Any]:
    detail = operation.get("kind") or (f"rank {operation['rank']}" if "rank" in operation else "")
    norm = operation.get("norm")
    return {
        "type": operation["type"],
        "places": operation.get("places") or [operation.get("place", "the whole model")],
        "detail": detail,
        "size": human_bytes(operation["bytes"]),
        "norm": "" if norm is None else f"{norm:.4g}",
    }


def _show_requests(requests: Any) -> None:
    if isinstance(requests, dict):
        say(f"The {requests['count']} edited facts are kept private by its author.")
        return
    if not requests:
        say("It records no facts.")
    for fact in requests[:_SHOWN]:
        say(one_line(f"{fact['prompt']} -> {fact['target_new']}"))
    if len(requests) > _SHOWN:
        say(f"... and {len(requests) - _SHOWN} more (see --json)")
