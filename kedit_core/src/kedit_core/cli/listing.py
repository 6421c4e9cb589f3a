"""``kedit methods``, ``models``, ``datasets``, ``metrics`` and ``plugins``: what is there, without importing torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kedit_core.cli.common import emit, json_option, note, say, show_table
from kedit_core.cli.groups import catalogue

if TYPE_CHECKING:
    from kedit_core.plugins import Catalogue, Found


@click.command()
@json_option
@click.pass_context
def methods(ctx: click.Context, json_to: str | None) -> None:
    """List the editing methods that are installed."""
    installed = catalogue(ctx)
    rows = [_method(installed, name) for name in sorted(installed.methods())]
    emit(json_to, lambda: {"methods": rows, "problems": _problems(installed)}, lambda: _show_methods(rows))
    _warn(installed)


@click.command()
@json_option
@click.pass_context
def models(ctx: click.Context, json_to: str | None) -> None:
    """List registered model names, and the architectures that have an adapter."""
    from kedit_core.plugins import Host

    installed = catalogue(ctx)
    host = Host(installed)
    named = [
        {"name": name, "summary": source.summary} for source in host.model_sources() for name in sorted(source.names)
    ]
    architectures = sorted({name for adapter in host.adapters() for name in adapter.architectures})

    def text() -> None:
        show_table(("model", "what it is"), [(row["name"], row["summary"]) for row in named])
        say("\nAny Hugging Face id or local folder will do as well. Architectures with an adapter:")
        say("  " + ", ".join(architectures))
        say("Others are tried by their structure.")

    emit(json_to, lambda: {"models": named, "architectures": architectures, "problems": _problems(installed)}, text)
    _warn(installed)


@click.command()
@json_option
@click.pass_context
def datasets(ctx: click.Context, json_to: str | None) -> None:
    """List registered datasets: what --requests takes by name, and copies it reads as NAME:PATH."""
    from kedit_core.plugins import Host

    installed = catalogue(ctx)
    rows: list[dict[str, Any]] = [
        {
            "name": info.name,
            "summary": info.summary,
            "requests": info.requests is not None,
            "copies": info.read is not None,
            "corpus": info.corpus is not None,
            "options": list(info.options),
            "metrics": list(info.metrics),
        }
        for info in sorted(Host(installed).datasets(), key=lambda each: each.name)
    ]

    def text() -> None:
        if not rows:
            say("No dataset is installed; pip install kedit-datasets brings the field's.")
            return
        show_table(
            ("dataset", "give", "options", "metrics", "summary"),
            [
                (
                    row["name"],
                    " or ".join(
                        ["NAME"] * bool(row["requests"]) + ["NAME:PATH"] * bool(row["copies"]) or ["(corpus only)"]
                    ),
                    " ".join(row["options"]),
                    " ".join(row["metrics"]),
                    row["summary"],
                )
                for row in rows
            ],
        )

    emit(json_to, lambda: {"datasets": rows, "problems": _problems(installed)}, text)
    _warn(installed)


@click.command()
@json_option
@click.pass_context
def metrics(ctx: click.Context, json_to: str | None) -> None:
    """List protocols (--protocol), and metrics that are measured on request (--metric)."""
    from kedit_core.evaluation import PROTOCOLS
    from kedit_core.plugins import Host

    installed = catalogue(ctx)
    protocols: list[dict[str, Any]] = [
        {"name": p.name, "aliases": list(p.aliases), "summary": p.summary} for p in PROTOCOLS
    ]
    found: list[dict[str, Any]] = [
        {
            "name": info.name,
            "group": info.group,
            "on_request": info.on_request,
            "better": info.better,
            "summary": info.summary,
        }
        for info in Host(installed).metrics()
    ]

    def text() -> None:
        names = [" or ".join((str(row["name"]), *map(str, row["aliases"]))) for row in protocols]
        show_table(("--protocol", "what it reads"), [(n, p["summary"]) for n, p in zip(names, protocols, strict=True)])
        asked = [row for row in found if row["on_request"]]
        say()
        show_table(("--metric", "measures", "what it is"), [(r["group"], r["name"], r["summary"]) for r in asked])

    emit(json_to, lambda: {"protocols": protocols, "metrics": found, "problems": _problems(installed)}, text)
    _warn(installed)


@click.command()
@click.option(
    "--check", is_flag=True, help="Also import and register each one and tell which are broken (slow: imports torch)."
)
@json_option
@click.pass_context
def plugins(ctx: click.Context, check: bool, json_to: str | None) -> None:
    """List what is plugged in, and by whom; KEDIT_PLUGINS (a comma list of distributions) narrows it."""
    from kedit_core.plugins import GROUPS

    installed = catalogue(ctx)
    entries = [found for group in GROUPS for found in installed.entries(group)]
    if check:
        _import_all(installed)
    rows = [_entry(found) for found in entries]
    rows += [_entry(found, "left out by KEDIT_PLUGINS") for found in installed.left_out]
    rows += [_entry(found, "left out: made for another kedit-core") for found in installed.unfit]

    def text() -> None:
        columns = ("group", "name", "distribution", "version", "")
        show_table(columns, [_cells(row) for row in rows])

    emit(json_to, lambda: {"plugins": rows, "problems": _problems(installed)}, text)
    _warn(installed)
    if check and installed.problems:
        ctx.exit(1)


def _method(installed: Catalogue, name: str) -> dict[str, Any]:
    from kedit_core.contract import OPERATION_TYPES, SCENARIOS
    from kedit_core.plugins import METHODS

    info = installed.methods()[name]
    found = installed.find(METHODS, name)
    return {
        "name": info.name,
        "summary": info.summary,
        "family": info.family,
        "distribution": found.distribution,
        "version": found.version,
        "scenarios": [scenario for scenario in SCENARIOS if scenario in info.scenarios],
        "operations": [kind for kind in OPERATION_TYPES if kind in info.operations],
        "state": info.state,
        "needs_subject": info.needs_subject,
        "resources": list(info.resources),
        "api": info.api,
    }


def _show_methods(rows: list[dict[str, Any]]) -> None:
    if not rows:
        say("No editing method is installed (or KEDIT_PLUGINS leaves them out); pip install kedit brings kedit's own.")
        return
    show_table(
        ("method", "family", "scenarios", "writes", "from", "summary"),
        [
            (
                row["name"],
                row["family"],
                " ".join(row["scenarios"]),
                " ".join(row["operations"]),
                f"{row['distribution']} {row['version']}".strip(),
                row["summary"],
            )
            for row in rows
        ],
    )


def _entry(found: Found, left_out: str = "") -> dict[str, Any]:
    return {
        "group": found.group,
        "name": found.name,
        "value": found.value,
        "distribution": found.distribution,
        "version": found.version,
        "active": not left_out,
        "note": left_out,
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return row["group"], row["name"], row["distribution"], row["version"], row["note"]


def _import_all(installed: Catalogue) -> None:
    """Load every entry and register the plugins; what fails is then among the problems."""
    from kedit_core.errors import KeditError
    from kedit_core.plugins import COMMANDS, OPERATIONS, Host

    installed.methods()
    Host(installed)  # hooks that do not exist, or have other arguments, are found when a plugin is registered
    for found in (*installed.entries(OPERATIONS), *installed.entries(COMMANDS)):
        try:
            found.load()
        except KeditError as error:
            installed.report(found, error)


def _problems(installed: Catalogue) -> list[dict[str, str]]:
    return [
        {
            "group": problem.found.group,
            "name": problem.found.name,
            "distribution": problem.found.distribution,
            "error": str(problem.error),
        }
        for problem in installed.problems
    ]


def _warn(installed: Catalogue) -> None:
    for problem in installed.problems:
        note(f"Left out: {problem.error}")
