"""Python code run by several processes on this machine that talk over gloo, as a launcher would start them."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from warm_processes import WarmProcess

TESTS = Path(__file__).parent


def free_port() -> str:
    """A port that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def run_ranks(
    code: str, arguments: Sequence[str | Path] = (), count: int = 2, timeout: float = 300, cwd: Path | None = None
) -> list[tuple[str, str]]:
    """What each process said (output, errors) that ran ``code`` with ``arguments``; all of them must end well.

    The tests' own modules can be imported there. A process that outlives ``timeout`` seconds is ended.
    """
    paths = [path for path in sys.path if path] + [str(TESTS)]
    together = {
        "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(),
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    running = [
        WarmProcess(code, arguments, {**os.environ, **together, "RANK": str(rank), "LOCAL_RANK": str(rank)}, cwd)
        for rank in range(count)
    ]
    try:
        said = [process.communicate(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * count, said
    return said
