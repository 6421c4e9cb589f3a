"""The shipped statistics are those that an edit with the presets asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from kedit_core import Editor
from kedit_factworld import files
from kedit_factworld.demo import DEFAULT_CASE, find_case
from kedit_methods_locate import stats

REMEDY = "the presets' statistics are not shipped under the key that an edit asks for; run scripts/make_stats.py"


@pytest.mark.slow
@pytest.mark.parametrize("kind", files.MODELS)
@pytest.mark.parametrize("method", ["rome", "r_rome"])
def test_an_edit_with_the_preset_collects_nothing(kind: str, method: str, tmp_path: Path) -> None:
    editor = Editor.from_pretrained(f"factworld:{kind}", method, cache=tmp_path / "cache")
    editor.compute(find_case(DEFAULT_CASE))
    assert not list(tmp_path.rglob("*.safetensors")), REMEDY


def test_the_shipped_statistics_can_be_read() -> None:
    paths = sorted((files.data_folder() / files.STATISTICS).iterdir())
    assert len(paths) >= len(files.MODELS)
    for path in paths:
        [statistic] = stats.load_statistics(path)
        assert statistic.record["key"] == path.stem
        assert statistic.record["corpus"]["source"] == "dataset:factworld"
        assert statistic.count >= stats.TOKENS_PER_WIDTH * statistic.width
        assert "seconds" not in statistic.record
