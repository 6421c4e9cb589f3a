"""One row of the table of results: a model, a method and a scenario, edited and measured.

    python benchmarks/table_row.py factworld:llama rome single --cases 5 --out rome.json

`table.py` runs this once for each row, in a process of its own. What is written is the same on every machine but for
rounding and the seconds: settings with where they came from, digests of weights and requests, versions, figures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import asdict, field, frozen

from kedit_core import Editor, EditRequest, EditResult, KeditError
from kedit_core.contract import SCENARIOS, MethodInfo, hookimpl
from kedit_core.errors import InputError
from kedit_core.evaluation import Evaluation, Tag, combine, requests_digest, run_manifest
from kedit_core.files import replacing
from kedit_core.patches import path_digest
from kedit_core.requests import load_requests

FORMAT = 1
PROTOCOLS = ("generate", "teacher_forced")
REQUESTS = "factworld"
OPTIONS = {"ike": {"demonstrations": "factworld_demonstrations"}}
_RUN = ("versions", "platform", "devices", "dtypes", "threads")  # of the manifest; the rest are settings


@frozen(kw_only=True)
class Row:
    """What a row measures.

    Attributes:
        size: facts that are on the model together: 1 in ``single``.
        cases: facts in all, in consecutive groups of ``size``; figures are means over all of them.
        per_round: facts a round of ``sequential``; 1 in the other scenarios, which have no rounds.
    """

    model: str
    method: str
    scenario: str
    size: int = 1
    cases: int = 300
    per_round: int = 1
    seed: int = 0

    @property
    def model_name(self) -> str:
        """The model without where it lies on this machine."""
        path = Path(self.model)
        return path.name if path.is_dir() else self.model

    @property
    def file(self) -> str:
        """Name of the row's file."""
        together = self.scenario if self.size == 1 else f"{self.scenario}-{self.size}"
        return re.sub(r"[^\w.-]+", "-", f"{self.model_name}.{self.method}.{together}.of-{self.cases}") + ".json"

    def __str__(self) -> str:
        together = f" x {self.size}" if self.size > 1 else ""
        return f"{self.model_name} {self.method} {self.scenario}{together}, {self.cases} cases"


@frozen(kw_only=True)
class Given:
    """What a method is given beside its hparams: ``options``, and role -> path of ``resources``."""

    options: Mapping[str, str] = field(factory=dict)
    resources: Mapping[str, str] = field(factory=dict)

    def arguments(self) -> list[str]:
        """As this script takes them."""
        texts = [text for key, value in self.options.items() for text in ("--option", f"{key}={value}")]
        return texts + [text for role, path in self.resources.items() for text in ("--with", f"{role}={path}")]

    def settings(self) -> dict[str, Any]:
        """What of it figures follow from; nothing where nothing was given. Files are told by their digests."""
        digests = {role: path_digest(Path(path)) for role, path in self.resources.items()}
        found = {"options": dict(self.options), "resources": digests}
        return {key: value for key, value in found.items() if value}


def given_of(info: MethodInfo, resources: Mapping[str, str]) -> Given:
    """What the table gives a method: its options, and those of ``resources`` (role -> path) that it takes."""
    return Given(
        options=OPTIONS.get(info.name, {}),
        resources={role: path for role, path in resources.items() if role in info.resources},
    )


class ProcessorTime:
    """A plugin that adds up what computing the patches takes of the processor: with one thread, the seconds of an idle
    machine, whatever else is running."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @hookimpl(wrapper=True)
    def compute_patch(self) -> Generator[None, Any, Any]:
        """Around the method's own."""
        started = time.process_time()
        try:
            return (yield)
        finally:
            self.seconds += time.process_time() - started


class OutermostWork:
    """Prints the share of the row that is done, for whoever started this process; inner pieces of work are not told."""

    def __init__(self, groups: int) -> None:
        self.groups, self.group = groups, 0
        self._depth = 0

    @contextmanager
    def __call__(self, description: str, total: float | None = None) -> Iterator[OutermostWork._Piece]:
        self._depth += 1
        try:
            yield self._Piece(self, total or 1.0, outermost=self._depth == 1)
        finally:
            self._depth -= 1

    class _Piece:
        def __init__(self, owner: OutermostWork, total: float, *, outermost: bool) -> None:
            self.owner, self.total, self.outermost, self.done = owner, total, outermost, 0.0

        def advance(self, amount: float = 1) -> None:
            self.done += amount
            if self.outermost:
                whole = (self.owner.group + min(1.0, self.done / self.total)) / self.owner.groups
                print(f"{whole:.4f}", flush=True)

        def describe(self, text: str) -> None:
            pass


def requests_of(editor: Editor, source: str, count: int) -> list[EditRequest]:
    """The first ``count`` requests of a file or a registered dataset; InputError when there are fewer."""
    if Path(source).is_file():
        found: Sequence[EditRequest] = load_requests(Path(source))
    else:
        dataset = editor.host.dataset(source)
        found = dataset.requests() if dataset.requests is not None else ()
    if not 0 < count <= len(found):
        raise InputError(f"{source} has {len(found)} cases, and {count} were asked for; choose 1 to {len(found)}")
    return list(found[:count])


def settings_of(row: Row, editor: Editor, requests: Sequence[EditRequest], given: Given) -> dict[str, Any]:
    """All that the row's figures follow from, JSON-able; two rows with equal settings are one row."""
    found = editor.catalogue.find("kedit.methods", row.method)
    return {
        **asdict(row),
        "model": row.model_name,
        "model_digest": editor.stack.weights_digest(),
        "requests_digest": requests_digest(requests),
        "distribution": found.distribution if found else None,
        "version": found.version if found else None,
        "protocols": list(PROTOCOLS),
        "hparams": editor.settings.hparams.to_dict() if editor.settings else {},
        **given.settings(),
    }


def digest_of(settings: Mapping[str, Any]) -> str:
    """SHA-256 of settings."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def measure(
    row: Row,
    editor: Editor,
    requests: Sequence[EditRequest],
    progress: OutermostWork,
    clock: ProcessorTime | None = None,
    given: Given | None = None,
) -> dict[str, Any]:
    """The row: every group of ``size`` facts edited, measured and taken off, as one JSON-able record."""
    settings = settings_of(row, editor, requests, given or Given())
    if row.scenario == "single":
        results = [editor.edit(requests, scenario="single", protocols=PROTOCOLS)]
    else:
        results = []
        for start in range(0, len(requests), row.size):
            results.append(_group(row, editor, requests[start : start + row.size]))
            progress.group += 1
    evaluation = combine([result.evaluation for result in results if result.evaluation is not None])
    manifest = run_manifest(editor.model)
    return {
        "format": FORMAT,
        "digest": digest_of(settings),
        "settings": settings,
        "sources": dict(editor.settings.sources) if editor.settings else {},
        "notes": list(editor.settings.notes) if editor.settings else [],
        "figures": figures(evaluation, row),
        "processor_seconds": None if clock is None else clock.seconds / len(requests),
        "warnings": dict(sorted(Counter(w.code for result in results for w in result.warnings).items())),
        **{key: manifest[key] for key in _RUN},
    }


def _group(row: Row, editor: Editor, requests: Sequence[EditRequest]) -> EditResult:
    """Some facts, together on the model; it is as it was afterwards."""
    try:
        return editor.edit(requests, scenario=row.scenario, batch_size=row.per_round, protocols=PROTOCOLS)
    finally:
        editor.restore()


def figures(evaluation: Evaluation, row: Row) -> dict[str, Any]:
    """Means of an evaluation, without the cases and what was read for each."""
    return {
        name: {
            "value": result.value,
            "parts": dict(result.parts),
            "cases": len(result.cases),
            "part_cases": {part: len(scores) for part, scores in result.case_parts.items()},
            "left_out": result.left_out,
            "unit": result.unit,
            # the cases of several groups, of which only `size` were ever edited together
            "tag": str(Tag.parse(result.tag).counting(row.cases if row.scenario == "single" else row.size)),
        }
        for name, result in evaluation.metrics.items()
    }


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="registered name, folder or Hub id")
    parser.add_argument("method")
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--size", type=int, default=1, help="facts on the model together (batch, sequential)")
    parser.add_argument("--cases", type=int, default=300, help="facts in all, from the first one on")
    parser.add_argument("--per-round", type=int, default=1, help="facts a round of sequential")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--requests", default=REQUESTS, help="a file, or a registered dataset")
    parser.add_argument("--out", type=Path, required=True, help="where the row goes")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="for the method")
    parser.add_argument("--with", action="append", default=[], dest="resources", metavar="ROLE=PATH")
    asked = vars(parser.parse_args())
    out, source = asked.pop("out"), asked.pop("requests")
    options, resources = (dict(text.split("=", 1) for text in asked.pop(name)) for name in ("option", "resources"))
    given, row = Given(options=options, resources=resources), Row(**asked)
    progress = OutermostWork(-(-row.cases // row.size) if row.scenario != "single" else 1)
    try:
        clock = ProcessorTime()
        editor = Editor.from_pretrained(
            row.model,
            row.method,
            seed=row.seed,
            progress=progress,
            plugins=[clock],
            options=options,
            resources=resources,
        )
        record = measure(row, editor, requests_of(editor, source, row.cases), progress, clock, given)
    except KeditError as error:
        print(error, file=sys.stderr)
        return 1
    with replacing(out) as stream:
        stream.write((json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
