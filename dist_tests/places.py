"""Where archives, libraries and bare environments are, and how they are made.

An environment is bare: Python without pip, one line that puts the shared folder of third-party libraries on its path,
and what is installed into it from dist/. So a distribution has nothing of ours that it was not given.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from attrs import frozen

REPO = Path(__file__).resolve().parents[1]
DIST = REPO / "dist"
LIBS = REPO / "build" / "libs"
# What only the suite is run with: transformers imports these where they are, and they talk on stderr.
SUITE_ONLY = ("torchao", "bitsandbytes")


def projects() -> dict[str, Path]:
    """Name -> folder of every distribution of this repository."""
    files = [REPO / "pyproject.toml", *REPO.glob("kedit_*/pyproject.toml"), *REPO.glob("plugins/*/pyproject.toml")]
    return {tomllib.loads(each.read_text())["project"]["name"]: each.parent for each in sorted(files)}


def archive(name: str, ending: str) -> Path:
    """The one wheel (``.whl``) or sdist (``.tar.gz``) of a distribution."""
    found = sorted(DIST.glob(f"{name.replace('-', '_')}-[0-9]*{ending}"))
    if len(found) != 1:
        raise FileNotFoundError(f"dist/ has {len(found)} files {ending} of {name}; run `make dist`")
    return found[0]


def libraries() -> Path:
    """The folder with all third-party libraries of the environment that runs this, and nothing of kedit.

    Files are linked where the file system allows it, so it costs seconds and no space; made anew when a library has
    another version than before.
    """
    theirs = sorted((each for each in metadata.distributions() if _is_library(each)), key=lambda each: each.name)
    told = "\n".join(f"{each.name} {each.version}" for each in theirs)
    stamp = LIBS / f".{hashlib.sha256(told.encode()).hexdigest()[:16]}"
    if stamp.exists():
        return LIBS
    shutil.rmtree(LIBS, ignore_errors=True)
    LIBS.mkdir(parents=True)
    for each in theirs:
        for file in each.files or ():
            if ".." not in file.parts:  # what lies outside of site-packages are scripts
                _link(Path(str(each.locate_file(file))), LIBS / file)
    stamp.touch()
    return LIBS


def _is_library(distribution: metadata.Distribution) -> bool:
    """Whether it is somebody else's, and something that ours may need; pip is not."""
    name = (distribution.name or "").lower().replace("_", "-")
    ours = name == "kedit" or name.startswith("kedit-") or name in projects()
    return bool(name) and not ours and name not in ("pip", *SUITE_ONLY) and distribution.read_text("RECORD") is not None


def _link(source: Path, target: Path) -> None:
    if not source.is_file() or target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@frozen
class Bare:
    """An environment with some distributions in it.

    Attributes:
        folder: of the environment.
        scratch: a folder for the files of those who use it, and their current one.
    """

    folder: Path
    scratch: Path

    @classmethod
    def make(cls, folder: Path) -> Bare:
        """An environment with libraries alone."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "libraries.pth").write_text(f"{libraries()}\n")
        scratch = folder.with_name(f"{folder.name}-files")
        scratch.mkdir()
        return cls(folder, scratch)

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self.folder / "bin" / "python")

    def install(self, *wheels: Path | str) -> None:
        """Install wheels, or distributions of dist/ by name; nothing else is looked at, and nothing fetched."""
        given = [str(archive(each, ".whl") if isinstance(each, str) else each) for each in wheels]
        self.pip("install", "--quiet", "--no-deps", "--no-index", "--find-links", str(DIST), *given)

    def pip(self, *arguments: str) -> str:
        """Run the pip of the environment that runs this on this one; gives what it says, and fails if it does."""
        command = [sys.executable, "-m", "pip", "--python", self.python, "--disable-pip-version-check", *arguments]
        done = self._run(command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, *arguments: str, code: int = 0, environ: dict[str, str] | None = None) -> str:
        """Run its Python; gives stdout and stderr, and fails unless it ends with ``code``."""
        done = self._run([self.python, *arguments], environ)
        told = done.stdout + done.stderr
        assert done.returncode == code, f"{' '.join(arguments)} ended with {done.returncode}, not {code}:\n{told}"
        return told

    def kedit(self, *arguments: str, code: int = 0, environ: dict[str, str] | None = None) -> str:
        """Run its ``kedit``, likewise."""
        done = self._run([str(self.folder / "bin" / "kedit"), *arguments], environ)
        told = done.stdout + done.stderr
        assert done.returncode == code, f"kedit {' '.join(arguments)} ended with {done.returncode}, not {code}:\n{told}"
        return told

    def _run(self, command: list[str], environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "KEDIT", "PIP_"))}
        own = {
            "KEDIT_CACHE": str(self.scratch / "cache"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        return subprocess.run(
            command, capture_output=True, text=True, cwd=self.scratch, env={**inherited, **own, **(environ or {})}
        )
