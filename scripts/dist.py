"""Build the wheel and the sdist of every distribution of this repository into dist/ (`make dist`).

    python scripts/dist.py [-o FOLDER] [DISTRIBUTION ...]

Each is built from a copy of what git would see of it, the wheel from the sdist, so that nothing that lies about (build
folders, the egg-info of an editable install) gets into either, and an sdist that lacks something is found out.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
LEFT_BEHIND = ("build", "dist", "__pycache__", "*.egg-info", "*.pyc", ".*", "scripts")
OF_THE_ROOT = ("pyproject.toml", "README.md", "LICENSE")  # it has no code


def projects() -> dict[str, Path]:
    """Name -> folder of every distribution, the one without code first."""
    folders = [
        REPO,
        *sorted(each.parent for each in [*REPO.glob("kedit_*/pyproject.toml"), *REPO.glob("plugins/*/pyproject.toml")]),
    ]
    return {tomllib.loads((folder / "pyproject.toml").read_text())["project"]["name"]: folder for folder in folders}


def staged(folder: Path, into: Path) -> Path:
    """A clean copy of a project."""
    if folder == REPO:
        into.mkdir()
        for name in OF_THE_ROOT:
            shutil.copy2(folder / name, into / name)
        return into
    return shutil.copytree(folder, into, ignore=shutil.ignore_patterns(*LEFT_BEHIND))


def build(name: str, folder: Path, output: Path) -> list[Path]:
    """Both archives of one project, moved to ``output`` when both are there."""
    with tempfile.TemporaryDirectory(prefix="kedit-dist-") as scratch:
        source, made = staged(folder, Path(scratch) / "source"), Path(scratch) / "dist"
        done = subprocess.run(
            [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(made), str(source)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{name} cannot be built:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
        for old in output.glob(f"{name.replace('-', '_')}-[0-9]*"):
            old.unlink()  # of an earlier version, which --find-links would find too
        return [Path(shutil.move(each, output / each.name)) for each in sorted(made.iterdir())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=REPO / "dist")
    parser.add_argument("names", nargs="*", metavar="DISTRIBUTION", help="by default all")
    arguments = parser.parse_args()
    known = projects()
    if unknown := sorted(set(arguments.names) - set(known)):
        parser.error(f"no distribution is called {', '.join(unknown)}; there are {', '.join(known)}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or known:
        start = time.perf_counter()
        archives = build(name, known[name], arguments.output)
        sizes = ", ".join(f"{each.name} ({each.stat().st_size / 1000:.0f} kB)" for each in archives)
        print(f"{sizes} in {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
