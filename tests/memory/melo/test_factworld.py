"""MELO with its presets on models that know facts."""

from __future__ import annotations

import pytest

from kedit_core import Editor
from kedit_factworld.plugin import edit_cases


@pytest.mark.slow
@pytest.mark.parametrize("name", ["factworld:gpt2", "factworld:llama"])
def test_facts_are_changed_and_nothing_else(name: str) -> None:
    editor = Editor.from_pretrained(name, method="melo")
    requests = edit_cases()[0:24:4]
    result = editor.edit(requests, scenario="sequential", protocols=("generate",))
    assert result.evaluation is not None
    metrics = result.evaluation.metrics
    assert metrics["gen_free.reliability"].value == 1.0
    assert metrics["gen_free.locality"].value == 1.0 and len(metrics["gen_free.locality"].outputs) > 30
