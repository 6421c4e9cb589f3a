"""Processes of their own that need not import torch and transformers first: forked from one that has.

What a process costs in a test is mostly imports, seconds each. A server of ``multiprocessing``'s, started once by each
test worker, imports them; a process is a fork of it: it shares no state with the test, and is killed like any other.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path

PRELOADED = (
    "torch", "transformers", "safetensors.torch", "accelerate", "transformers.models.auto.tokenization_auto",
    "transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama", "torch.distributed",
    "kedit_core.cli.root", "kedit_core.editing", "kedit_core.evaluation", "kedit_core.training", "kedit_core.folders",
    "kedit_core.testing", "kedit_methods_locate.rome", "kedit_methods_meta.mend.method", "kedit_bench.run",
)  # fmt: skip


@cache
def _server() -> ForkServerContext:
    context = get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


class WarmProcess:
    """Python code run by a process of its own: the part of :class:`subprocess.Popen` that tests use.

    The tests' own modules can be imported there. ``environment`` is the whole one; threads of torch: one.
    """

    def __init__(
        self, code: str, arguments: Sequence[str | Path], environment: Mapping[str, str], cwd: Path | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._said = tuple(Path(self._folder.name) / name for name in ("out", "err"))
        given = (code, [str(each) for each in arguments], dict(environment), str(cwd or Path.cwd()), *self._said)
        self._process = _server().Process(target=_run, args=given, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a warm process", timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (path.read_text() if path.exists() else "" for path in self._said)
        return out, err

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _run(code: str, arguments: list[str], environment: dict[str, str], cwd: str, out: Path, err: Path) -> None:
    """In the new process: become what ``python -c CODE ARGUMENTS`` is."""
    for path, number in ((out, 1), (err, 2)):
        opened = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        os.dup2(opened, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["-c", *arguments]
    sys.path[:] = ["", *[p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p], *sys.path]
    import torch

    torch.set_num_threads(1)
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


def run_warm(
    code: str, *arguments: str | Path, cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` of ``python -c CODE ARGUMENTS`` with its output, in a warm process."""
    paths = [path for path in sys.path if path] + [str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    process = WarmProcess(code, arguments, environment, cwd)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess([code, *map(str, arguments)], process.wait(), out, err)
