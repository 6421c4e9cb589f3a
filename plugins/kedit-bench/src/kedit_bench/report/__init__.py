"""The report of a bench: one HTML file with its data and styles inside (see :func:`write_report`)."""

from __future__ import annotations

from kedit_bench.report.page import report, write_report
from kedit_bench.report.reading import load_bench, read_bench

__all__ = ["load_bench", "read_bench", "report", "write_report"]
