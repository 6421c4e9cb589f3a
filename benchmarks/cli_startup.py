"""Wall time of `kedit --help` (and the listings) against `python -c pass`: medians in one run.

python benchmarks/cli_startup.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

KEDIT = [sys.executable, "-c", "from kedit_core.cli import main; main()"]
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "kedit --help": [*KEDIT, "--help"],
    "kedit methods": [*KEDIT, "methods"],
    "kedit plugins": [*KEDIT, "plugins"],
    "kedit edit --help": [*KEDIT, "edit", "--help"],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
}


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description="Start-up times.")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {}
    for name, command in COMMANDS.items():
        times = []
        for _ in range(options.repeats):
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        found[name] = statistics.median(times)
        print(f"{name:<26} {found[name] * 1e3:8.0f} ms {found[name] / found['python -c pass']:7.1f}x")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
