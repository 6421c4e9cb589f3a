"""Benchmark tables for kedit: methods x models x datasets x scenarios (docs/bench.md).

Importing this package imports no torch; ``run_bench`` does when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kedit_bench.reader import read_spec, spec_from
from kedit_bench.spec import BenchSpec, DatasetSpec, MethodSpec, ModelSpec, ScenarioSpec, SpecError

if TYPE_CHECKING:
    from kedit_bench.run import run_bench

__all__ = [
    "BenchSpec",
    "DatasetSpec",
    "MethodSpec",
    "ModelSpec",
    "ScenarioSpec",
    "SpecError",
    "read_spec",
    "run_bench",
    "spec_from",
]


def __getattr__(name: str) -> Any:
    if name == "run_bench":
        return import_module("kedit_bench.run").run_bench
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
