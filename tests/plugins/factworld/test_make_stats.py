"""Equal statistics are shipped as equal bytes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from attrs import evolve
from locate_tools import a_statistic

from kedit_methods_locate.stats import load_statistics, save_statistics

SCRIPTS = Path(__file__).parents[3] / "plugins" / "kedit-factworld" / "scripts"


def test_what_differs_between_two_runs_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    make_stats = importlib.import_module("make_stats")
    sys.modules.pop("make_stats")
    written = []
    for seconds, lowest in ((1.5, 0.25), (2.5, 0.25000000000000006)):
        path = tmp_path / f"{seconds}.safetensors"
        record = {"seconds": seconds, "summary": {"lambda_min": lowest}, "key": "k"}
        save_statistics(path, [evolve(a_statistic(1, 6), record=record)])
        make_stats.trimmed(path)
        written.append(path.read_bytes())
        assert load_statistics(path)[0].record == {"key": "k"}
    assert written[0] == written[1]
