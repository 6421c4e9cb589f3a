"""The table of results by one command: every method on FactWorld, alone, in batches and one after another.

    python benchmarks/table.py [--jobs 2]
    python benchmarks/table.py --only single --methods rome r_rome --models factworld:llama
    python benchmarks/table.py --table            # only write the pages anew

A row is one JSON file in the folder of results. Rows that are there with the same settings (weights, requests, all
hparams, version of the method) are not run again; each is a process of its own with one thread; one that fails is
reported and stops nothing. See `table_row.py` for what a row is and `table_text.py` for the pages.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import table_text
from attrs import field, frozen
from editors import name_of
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from table_row import REQUESTS, Given, Row, digest_of, given_of, requests_of, settings_of

from kedit_core import Editor, KeditError
from kedit_core.errors import InputError
from kedit_core.files import replacing
from kedit_core.plugins import Catalogue

HERE = Path(__file__).parent
MODELS = ("factworld:llama", "factworld:gpt2")
MEMORY = ("grace", "melo", "wise", "t_patcher", "serac", "ike", "ike_context")
META = ("mend", "malmen", "ke")
METHODS = {
    "single": ("rome", "r_rome", "ft_l", "ft_m", "lora", "kn", *META, *MEMORY),
    "batch": ("memit", "emmet", "pmet", "alphaedit", *META),
    "sequential": ("rome", "r_rome", "memit", "alphaedit", "ft_bf", *META, *MEMORY),
}
READERS = ("factworld:llama-reader", "factworld:gpt2-reader")
ON_READERS = {"single": ("ft_m", "ike", "ike_context"), "sequential": ("alphaedit", "ike", "ike_context")}
"""On models that read their context: in-context editing, and a method that writes weights beside it."""
BATCHES = (30, 100)
OWN_BATCHES = {"memit": (10, *BATCHES), **dict.fromkeys(META, (10, *BATCHES))}
SEQUENCE = 100
TRAINED = ("serac", *META)  # what they edit with is trained first: `editors.py`
ALL_IN_A_ROUND = {"ft_bf"}  # breadth-first: what comes one after another are the epochs, over all facts
COMMAND = "python benchmarks/table.py"


@frozen(kw_only=True)
class Wanted:
    """A row with the digest of its settings, or why it cannot be run."""

    row: Row
    digest: str = ""
    fault: str = ""
    given: Given = field(factory=Given)


def rows_of(options: argparse.Namespace) -> Iterator[Row]:
    """The rows asked for; a method that the table does not list runs wherever it can.

    Raises UnknownNameError for a method that is not installed.
    """
    catalogue = Catalogue.installed()
    listed = {method for methods in METHODS.values() for method in methods}
    asked = {method: catalogue.method(method) for method in options.methods or ()}
    for scenario in options.only:
        further = [name for name, info in asked.items() if name not in listed and scenario in info.scenarios]
        for model in options.models:
            usual = ON_READERS.get(scenario, ()) if model in READERS else METHODS[scenario]
            for method in (*(each for each in usual if not asked or each in asked), *further):
                yield from _sizes(model, method, scenario, options)


def resources_of(texts: Sequence[str]) -> dict[str, str]:
    """role -> path. Raises InputError for a text without ``=`` and a path that is not there."""
    found = {}
    for text in texts:
        role, equals, path = text.partition("=")
        if not equals or not Path(path).exists():
            raise InputError(f"--with takes ROLE=PATH with a path that is there, not {text!r}")
        found[role] = str(Path(path).absolute())
    return found


def _sizes(model: str, method: str, scenario: str, options: argparse.Namespace) -> Iterator[Row]:
    cases = options.cases
    if scenario == "single":
        yield Row(model=model, method=method, scenario=scenario, cases=cases)
    elif scenario == "batch":
        for size in options.batches or OWN_BATCHES.get(method, BATCHES):
            yield Row(model=model, method=method, scenario=scenario, size=min(size, cases), cases=cases)
    else:
        size = min(options.sequence, cases)
        cases = min(size * options.runs, cases)
        round_of = size if method in ALL_IN_A_ROUND else 1
        yield Row(model=model, method=method, scenario=scenario, size=size, cases=cases, per_round=round_of)


def editor_of(row: Row, editors: Path) -> dict[str, str]:
    """The row's trained editor among those that `editors.py` made, as a resource; nothing when it needs none.

    Raises InputError when it is not there.
    """
    if row.method not in TRAINED:
        return {}
    folder = editors / name_of(row.model, row.method)
    if not (folder / "state.json").is_file():
        raise InputError(f"{folder} holds no editor; train it: python benchmarks/editors.py --methods {row.method}")
    return {"editor": str(folder.absolute())}


def wanted_of(rows: Sequence[Row], source: str, resources: Mapping[str, str], editors: Path) -> Iterator[Wanted]:
    """Settings of each row, found by resolving them on its model, which is loaded once."""
    for model in dict.fromkeys(row.model for row in rows):
        of_model = [row for row in rows if row.model == model]
        try:
            first = Editor.from_pretrained(model)
        except Exception as error:
            yield from (Wanted(row=row, fault=_sentence(error)) for row in of_model)
            continue
        for row in of_model:
            try:
                editor = Editor(first.model, first.tokenizer, row.method, name=first.name, revision=first.revision)
                given = given_of(editor.catalogue.method(row.method), {**editor_of(row, editors), **resources})
                requests = requests_of(editor, source, row.cases)
                yield Wanted(row=row, digest=digest_of(settings_of(row, editor, requests, given)), given=given)
            except Exception as error:  # a method that cannot be had must not stop the others
                yield Wanted(row=row, fault=_sentence(error))


def _sentence(error: Exception) -> str:
    return str(error) if type(error).__module__.startswith("kedit") else f"{type(error).__name__}: {error}"


def is_there(wanted: Wanted, out: Path) -> bool:
    """Whether the row's file holds figures made with the very same settings."""
    try:
        return bool(json.loads((out / wanted.row.file).read_text())["digest"] == wanted.digest)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def run_row(wanted: Wanted, out: Path, source: str, progress: Progress) -> str:
    """Run a row in a process of its own; what went wrong, or nothing."""
    row = wanted.row
    command = [sys.executable, str(HERE / "table_row.py"), row.model, row.method, row.scenario]
    numbers = {"size": row.size, "cases": row.cases, "per-round": row.per_round, "seed": row.seed}
    command += [text for name, number in numbers.items() for text in (f"--{name}", str(number))]
    command += ["--requests", source, "--out", str(out / row.file), *wanted.given.arguments()]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    task = progress.add_task(str(row), total=1.0)
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **one_thread}
        )
        try:
            for line in process.stdout or ():
                progress.update(task, completed=_fraction(line))
            code = process.wait()
        finally:
            process.kill()
            progress.remove_task(task)
        errors.seek(0)
        said = [line.strip() for line in errors if line.strip()]
    return "" if code == 0 else (said[-1] if said else f"the process ended with code {code}")


def _fraction(line: str) -> float | None:
    try:
        return float(line)
    except ValueError:
        return None


def run_all(asked: Sequence[Wanted], out: Path, source: str, jobs: int, console: Console) -> dict[Row, str]:
    """Run rows, ``jobs`` at a time; those that failed, with why."""
    failed: dict[Row, str] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    started = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        pool = ThreadPoolExecutor(max_workers=jobs)
        try:
            running = {pool.submit(run_row, each, out, source, progress): each.row for each in asked}
            for done, future in enumerate(as_completed(running), 1):
                row, fault = running[future], future.result()
                if fault:
                    failed[row] = fault
                minutes = (time.monotonic() - started) / 60
                end = f"FAILED: {fault}" if fault else "done"
                console.print(f"[{done}/{len(asked)}, {minutes:.1f} min] {row}: {end}", markup=False, soft_wrap=True)
        finally:
            pool.shutdown(cancel_futures=True)
    return failed


def write_pages(out: Path) -> list[Path]:
    """The page of the folder, and what the READMEs above it have between markers."""
    rows = table_text.read(out)
    pages = {out / "README.md": table_text.page(rows, COMMAND)}
    above = out.absolute().parent
    for readme, text in (
        (above / "README.md", table_text.fragment(rows)),
        (above.parent / "README.md", table_text.headline(rows)),
    ):
        if readme.is_file() and (whole := table_text.replace_between(readme.read_text(), text)):
            pages[readme] = whole
    for path, text in pages.items():
        with replacing(path) as stream:
            stream.write(text.encode())
    return list(pages)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[*MODELS, *READERS], help="registered names, folders or Hub ids")
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS), help="scenarios")
    parser.add_argument("--methods", nargs="+", help="only these; one that the table does not list runs where it can")
    parser.add_argument("--requests", default=REQUESTS, help="a file, or a registered dataset")
    parser.add_argument("--cases", type=int, default=300, help="the first so many")
    parser.add_argument("--batches", type=int, nargs="+", help="facts a batch (30 and 100; for some 10, too)")
    parser.add_argument("--sequence", type=int, default=SEQUENCE, help="facts one after another")
    parser.add_argument("--runs", type=int, default=1, help="sequences, each from the unedited model")
    parser.add_argument("--jobs", type=int, default=2, help="rows at a time")
    parser.add_argument(
        "--with",
        action="append",
        default=[],
        dest="resources",
        metavar="ROLE=PATH",
        help="what methods that know the role are given",
    )
    parser.add_argument("--editors", type=Path, default=HERE / "editors", help="trained editors, made by editors.py")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--force", action="store_true", help="run rows again that are there")
    parser.add_argument("--plan", action="store_true", help="say what would be run")
    parser.add_argument("--table", action="store_true", help="run nothing, write the pages anew")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Command line entry: 0 when every row asked for is there, 1 when one failed, 2 when what was asked is wrong."""
    options = arguments(given)
    console = Console(highlight=False)
    failed: dict[Row, str] = {}
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        try:
            rows = list(dict.fromkeys(rows_of(options)))  # batches larger than all cases are one and the same
        except KeditError as error:
            console.print(f"error: {error}", markup=False, soft_wrap=True)
            return 2
        try:
            resources = resources_of(options.resources)
            asked = list(wanted_of(rows, options.requests, resources, options.editors))
        except KeditError as error:
            console.print(f"error: {error}", markup=False, soft_wrap=True)
            return 2
        failed = {wanted.row: wanted.fault for wanted in asked if wanted.fault}
        to_run = [w for w in asked if not w.fault and (options.force or not is_there(w, options.out))]
        kept = len(asked) - len(failed) - len(to_run)
        console.print(f"{len(asked)} rows: {len(to_run)} to run, {kept} there, {len(failed)} cannot be run")
        if options.plan:
            for wanted in asked:
                state = wanted.fault or ("to run" if wanted in to_run else "there")
                console.print(f"{wanted.row}: {state}", markup=False, soft_wrap=True)
            return 1 if failed else 0
        failed |= run_all(to_run, options.out, options.requests, options.jobs, console)
    for path in write_pages(options.out):
        console.print(f"written: {path}", markup=False, soft_wrap=True)
    for row, fault in failed.items():
        console.print(f"failed: {row}: {fault}", markup=False, soft_wrap=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
