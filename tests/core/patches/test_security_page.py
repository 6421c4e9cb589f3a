"""docs/security.md: what it says is shown by tests is shown by tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[2]
PAGE = TESTS.parent / "docs" / "security.md"


def named(text: str) -> list[tuple[str, str]]:
    """(file, test) of every test that a text names."""
    return re.findall(r"`([\w/]+\.py)::(\w+)`", text)


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_the_page_names_exists() -> None:
    found = named(PAGE.read_text())
    assert len(found) > 40
    missing = [
        f"{file}::{test}" for file, test in found if not (TESTS / file).is_file() or test not in functions(TESTS / file)
    ]
    assert not missing


def test_every_threat_has_a_test() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) > 20 and all(named(row) for row in rows)


def test_a_name_that_is_none_would_be_noticed() -> None:
    assert named("see `core/a.py::test_x`, and `b.py::test_y`") == [("core/a.py", "test_x"), ("b.py", "test_y")]
    assert "test_every_threat_has_a_test" in functions(Path(__file__)) and "test_x" not in functions(Path(__file__))
