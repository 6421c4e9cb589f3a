"""The plan of the house, checked: which room may import which."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
CORE = REPO / "kedit_core" / "src" / "kedit_core"
ROOMS = (
    "errors", "extras", "files", "contract", "plugins", "requests", "hparams", "models", "forward", "patches",
    "folders", "stacks", "comparing", "evaluation", "editing", "training", "cli", "testing",
)  # fmt: skip
FAMILIES = {
    "kedit_methods_locate": REPO / "kedit_methods_locate",
    "kedit_methods_meta": REPO / "kedit_methods_meta",
    "kedit_methods_memory": REPO / "kedit_methods_memory",
    "kedit_factworld": REPO / "plugins" / "kedit-factworld",
    "kedit_methods_finetune": REPO / "plugins" / "kedit-methods-finetune",
    "kedit_datasets": REPO / "plugins" / "kedit-datasets",
    "kedit_bench": REPO / "plugins" / "kedit-bench",
    "kedit_peft": REPO / "plugins" / "kedit-peft",
    "kedit_hub": REPO / "plugins" / "kedit-hub",
    "kedit_easyedit": REPO / "plugins" / "kedit-easyedit",
}
METHODS = {
    "rome",
    "r_rome",
    "memit",
    "emmet",
    "pmet",
    "alphaedit",
    "kn",
    "ft_l",
    "ft_m",
    "ft_bf",
    "lora",
    "adalora",
    "grace",
    "ke",
    "mend",
    "malmen",
    "serac",
    "ike",
    "ike_context",
    "t_patcher",
    "wise",
    "melo",
}
TORCH_FREE = (
    "kedit_core", "kedit_core.errors", "kedit_core.contract", "kedit_core.plugins", "kedit_core.requests",
    "kedit_core.hparams", "kedit_core.models.adapter", "kedit_core.models.builtin", "kedit_core.cli",
    "kedit_methods_locate.methods", "kedit_methods_locate.hparams", "kedit_methods_locate.commands.stats",
    "kedit_methods_locate.commands.locate", "kedit_methods_locate.commands.tune", "kedit_methods_finetune.methods",
    "kedit_methods_finetune.hparams",
    "kedit_datasets.plugin", "kedit_datasets.catalogue", "kedit_datasets.metrics", "kedit_bench.reader",
    "kedit_bench.spec", "kedit_bench.table", "kedit_bench.commands.bench",
    "kedit_factworld.plugin", "kedit_factworld.demo", "kedit_core.training.settings", "kedit_core.cli.train",
    "kedit_methods_meta.methods", "kedit_methods_meta.hparams.ke", "kedit_methods_meta.hparams.mend",
    "kedit_methods_meta.hparams.malmen", "kedit_peft.plugin", "kedit_peft.commands.from_peft",
    "kedit_hub.commands.push", "kedit_hub.commands.pull", "kedit_easyedit.command",
)  # fmt: skip


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules imported at run time: everything but what stands under ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from imports(other)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError("relative import: write the full name")
            yield node.module or ""
            if node.module == "kedit_core":
                yield from (f"kedit_core.{alias.name}" for alias in node.names)
        else:
            yield from imports(node)


def room_of(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "kedit_core" and len(parts) > 1 and parts[1] in ROOMS else None


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


@pytest.mark.parametrize("path", modules(CORE), ids=lambda p: str(p.relative_to(CORE)))
def test_rooms_import_only_those_above(path: Path) -> None:
    relative = path.relative_to(CORE)
    if relative == Path("__init__.py"):
        return  # the lazy front door
    room = relative.parts[0].removesuffix(".py")
    private = room.startswith("_")  # machinery of the room it is named after
    room = room.lstrip("_").split("_")[0] if private else room
    room = {"request": "requests", "plugin": "plugins", "hparam": "hparams"}.get(room, room)
    assert room in ROOMS, f"{relative} lies in no room of docs/architecture.md"
    for name in imports(ast.parse(path.read_text())):
        other = room_of(name)
        if other is not None and room != "testing":
            assert ROOMS.index(other) <= ROOMS.index(room), f"{relative} ({room}) imports {name} ({other}), below it"


@pytest.mark.parametrize("path", modules(CORE), ids=lambda p: str(p.relative_to(CORE)))
def test_the_core_imports_and_names_no_method(path: Path) -> None:
    text = path.read_text()
    for name in imports(ast.parse(text)):
        assert name.split(".")[0] not in FAMILIES, f"{path} imports {name}"
    for node in ast.walk(ast.parse(text)):
        named = node.value if isinstance(node, ast.Constant) else node.id if isinstance(node, ast.Name) else None
        assert named not in METHODS, f"{path}:{getattr(node, 'lineno', 0)} names the method {named!r}"


@pytest.mark.parametrize("package", sorted(FAMILIES))
def test_families_do_not_import_one_another(package: str) -> None:
    for path in modules(FAMILIES[package] / "src"):
        for name in imports(ast.parse(path.read_text())):
            other = name.split(".")[0]
            assert other == package or other not in FAMILIES, f"{path} imports {name}"
            assert not re.search(r"kedit_core(\.\w+)*\._", name), f"{path} imports the private {name}"


@pytest.mark.parametrize("module", TORCH_FREE)
def test_imports_without_torch(module: str) -> None:
    code = f"import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_architecture_page_lists_the_rooms_in_order() -> None:
    page = (REPO / "docs" / "architecture.md").read_text()
    places = [page.index(f"| `{room}") for room in ROOMS]
    assert places == sorted(places)


def test_no_prints_and_no_asserts_in_packages() -> None:
    for folder in [CORE, *(family / "src" for family in FAMILIES.values())]:
        for path in modules(folder):
            if "testing" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                assert not isinstance(node, ast.Assert), f"{path}:{node.lineno} asserts; raise a KeditError"
                called = node.func if isinstance(node, ast.Call) else None
                assert not (isinstance(called, ast.Name) and called.id == "print"), f"{path}:{node.lineno} prints"
