from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[3] / "docs" / "evaluation.md"


def test_importing_evaluation_and_making_its_plugins_imports_no_torch() -> None:
    code = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
import kedit_core.evaluation as evaluation
plugins = evaluation.plugin()
assert [info.name for plugin in plugins for info in plugin.register_metrics()]
assert evaluation.resolve_protocol("generate").name == "gen_free"
assert evaluation.Evaluation(metrics={}).summary()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there() -> None:
    import kedit_core.evaluation as evaluation

    assert all(hasattr(evaluation, name) for name in evaluation.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Answer'"):
        _ = evaluation.Answer


def test_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) > 5
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"{DOCS.name}, block {number}", "exec"), namespace)
    assert "gen_free.locality" in capsys.readouterr().out
