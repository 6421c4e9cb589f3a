"""Every distribution declares what it imports and what it is; dist_tests/ looks at what is built of it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import kedit_core

REPO = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in [*REPO.glob("kedit_*/pyproject.toml"), *REPO.glob("plugins/*/pyproject.toml")])
OWN = {folder.name.replace("-", "_") for folder in FOLDERS}


def project(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(path: Path) -> Iterator[str]:
    """Top-level modules a file imports in any place, also through kedit_core.extras.needed and import_module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called, name = ast.unparse(node.func).split(".")[-1], node.args[0].value
            if called in ("needed", "import_module") and isinstance(name, str):
                yield name.split(".")[0]


@pytest.fixture(scope="module")
def providers() -> dict[str, set[str]]:
    """Module -> normal names of the distributions that have it here."""
    return {name: {normal(each) for each in found} for name, found in metadata.packages_distributions().items()}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_is_imported_is_declared(folder: Path, providers: dict[str, set[str]]) -> None:
    """Also what another dependency happens to bring: it may stop doing so."""
    told = project(folder)
    optional = [each for extra in told.get("optional-dependencies", {}).values() for each in extra]
    declared = {normal(Requirement(each).name) for each in [*told["dependencies"], *optional]}
    missing: dict[str, str] = {}
    for path in sorted((folder / "src").rglob("*.py")):
        for module in imported(path):
            known = providers.get(module, {normal(module)})
            if module not in sys.stdlib_module_names and normal(module) != told["name"] and not known & declared:
                missing[module] = f"{path.relative_to(folder)}"
    assert not missing, f"{told['name']} imports what its pyproject.toml does not name: {missing}"


@pytest.mark.parametrize("folder", [REPO, *FOLDERS], ids=lambda folder: folder.name)
def test_what_it_says_of_itself(folder: Path) -> None:
    told = project(folder)
    assert told["requires-python"] == ">=3.11" and told["license"] == "Apache-2.0" and told["description"]
    assert told["version"] == kedit_core.__version__  # they are released together
    assert told["license-files"] == ["LICENSE"]
    assert (folder / "LICENSE").read_bytes() == (REPO / "LICENSE").read_bytes()
    assert (folder / told["readme"]).read_text().startswith("# ")
    if folder != REPO:
        assert "Typing :: Typed" in told["classifiers"]
        (package,) = (path.parent.name for path in folder.glob("src/*/py.typed"))
        assert package == told["name"].replace("-", "_")
        scripted = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["setuptools"]
        assert "py.typed" in scripted["package-data"][package]
    if told["name"] != "kedit-core":
        ours = [Requirement(each) for each in told["dependencies"] if each.startswith("kedit-")]
        assert "kedit-core" in {each.name for each in ours}
        for each in ours:
            assert str(each.specifier) and each.specifier.contains(kedit_core.__version__), each


def test_kedit_brings_them_all() -> None:
    told = project(REPO)
    assert {Requirement(each).name for each in told["dependencies"]} == {project(folder)["name"] for folder in FOLDERS}
