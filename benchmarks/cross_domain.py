"""What an editor is worth on relations it was not trained on: MEND trained on some of FactWorld's, edited on others.

    python benchmarks/cross_domain.py -o editors-by-domain [--set iterations=1000] [--processes 2] [--json FILE]

Two editors are trained, one on facts about people and one on facts about places and companies (subjects that no
evaluation case edits, as always), and each edits the evaluation cases of both, alone and ten at a time. Every case
counts once in each column, whatever the number of cases of its relation.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import editors
from rich.console import Console
from rich.table import Table
from table_row import PROTOCOLS

from kedit_core import Editor, EditRequest
from kedit_core.evaluation import combine
from kedit_factworld.plugin import edit_cases

DOMAINS = {
    "people": ("citizenship", "birth_city", "profession", "employer", "native_language", "instrument"),
    "places and companies": (
        "capital", "continent", "official_language", "currency", "city_country", "headquarters", "industry", "founder",
    ),
}  # fmt: skip
METRICS = ("reliability", "generalization", "locality")


def cases_of(domain: str, limit: int | None = None) -> list[EditRequest]:
    """The evaluation cases of a domain's relations."""
    return [case for case in edit_cases() if case.meta["relation"] in DOMAINS[domain]][:limit]


def figures(editor: Editor, cases: Sequence[EditRequest], size: int) -> dict[str, float]:
    """Means over all cases, edited ``size`` at a time, under both protocols."""
    if size == 1:
        evaluations = [editor.edit(cases, scenario="single", protocols=PROTOCOLS).evaluation]
    else:
        evaluations = []
        for start in range(0, len(cases), size):
            result = editor.edit(cases[start : start + size], scenario="batch", protocols=PROTOCOLS)
            evaluations.append(result.evaluation)
            editor.restore()
    found = combine([each for each in evaluations if each is not None])
    named = [f"{protocol}.{metric}" for protocol in ("gen_free", "tf_token") for metric in METRICS]
    return {name: value for name in named if (value := found.metrics[name].value) is not None}


def rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train what is not there, and edit."""
    found = []
    for trained in DOMAINS:
        out = options.out / trained.replace(" ", "-")
        given = ["-o", str(out), "--models", options.model, "--methods", options.method]
        given += ["--data", f"relations={','.join(DOMAINS[trained])}", "--processes", str(options.processes)]
        given += [part for text in options.set for part in ("--set", text)]
        if editors.main(given):
            raise SystemExit(1)
        folder = out / editors.name_of(options.model, options.method)
        for edited in DOMAINS:
            cases = cases_of(edited, options.cases)
            for size in (1, 10):
                editor = Editor.from_pretrained(options.model, options.method, resources={"editor": folder})
                row = {"trained": trained, "edited": edited, "together": size, "cases": len(cases)}
                found.append({**row, **figures(editor, cases, size)})
    return found


def show(found: Sequence[Mapping[str, Any]]) -> Table:
    """As a table."""
    names = [f"{protocol}.{metric}" for protocol in ("gen_free", "tf_token") for metric in METRICS]
    table = Table("trained on", "edited", "together", "cases", *names)
    for row in found:
        numbers = (f"{row[name]:.3f}" if name in row else "-" for name in names)
        table.add_row(row["trained"], row["edited"], str(row["together"]), str(row["cases"]), *numbers)
    return table


def main(given: Sequence[str] | None = None) -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the editors")
    parser.add_argument("--model", default="factworld:llama")
    parser.add_argument("--method", default="mend", choices=["mend", "malmen", "ke"])
    parser.add_argument("--cases", type=int, help="of each domain, at most")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the training")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(given)
    found = rows(options)
    Console(width=160).print(show(found))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
