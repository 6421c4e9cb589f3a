"""What tuning makes of the statistics before its trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from locate_tools import a_statistic

from kedit_core import Editor
from kedit_core.testing.tiny import tiny
from kedit_methods_locate.hparams import AlphaEditHyperParams, MemitHyperParams
from kedit_methods_locate.stats import Statistic, save_statistics
from kedit_methods_locate.tuning.candidates import Candidate
from kedit_methods_locate.tuning.prepare import collect_statistics


@pytest.mark.parametrize(("kind", "factors"), [(AlphaEditHyperParams, 0), (MemitHyperParams, 2)])
def test_a_factor_is_made_where_it_will_be_solved_with(
    kind: Any, factors: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_statistics(tmp_path / "given.safetensors", [a_statistic(layer, 80) for layer in (0, 1)])
    editor = Editor(*tiny("gpt2"), cache=tmp_path / "cache", options={"stats": tmp_path / "given.safetensors"})
    made: list[int] = []
    factorised = Statistic.factorised

    def counted(self: Statistic, *args: Any, **settings: Any) -> Any:
        made.append(self.layer)
        return factorised(self, *args, **settings)

    monkeypatch.setattr(Statistic, "factorised", counted)
    tried = [Candidate(number, {}, kind(layers=(number,))) for number in (0, 1)]
    told = {warning.code for warning in collect_statistics(editor, tried)}
    assert len(made) == factors
    assert "statistics_unverified" in told, "they were looked at"
