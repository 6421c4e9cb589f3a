"""The command line: thin click commands over the Python API. Importing this package imports neither torch nor click."""

from __future__ import annotations


def main() -> None:
    """Entry point of ``kedit``; never returns normally (exit codes: 0 done, 1 it failed, 2 the input was wrong)."""
    import sys

    try:
        from kedit_core.cli.root import kedit
    except KeyboardInterrupt:  # Ctrl-C before anything was begun
        sys.exit(130)
    kedit.main(prog_name="kedit")
