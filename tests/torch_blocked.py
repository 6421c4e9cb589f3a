"""Running code in a process where importing torch or transformers fails."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

_BLOCK = """
import sys
for name in ("torch", "transformers"):
    sys.modules[name] = None
"""


def run_without_torch(code: str, environ: Mapping[str, str] | None = None) -> str:
    """What the code prints; AssertionError with its traceback when it fails."""
    done = subprocess.run(
        [sys.executable, "-c", _BLOCK + code],
        capture_output=True,
        text=True,
        env={**os.environ, **(environ or {})},
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise AssertionError(done.stderr)
    return done.stdout
