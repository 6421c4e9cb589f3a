"""What is public is what docs/api lists; whoever changes it sees that, and lists it anew (`make api`)."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def api() -> ModuleType:
    spec = importlib.util.spec_from_file_location("api_listing", REPO / "scripts" / "api.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_public_api_is_as_listed(api: ModuleType) -> None:
    changed = api.difference(api.written(), api.listings())
    assert not changed, f"the public API is not as docs/api lists it; if that is meant, run `make api`:\n{changed}"


def test_lists_have_what_users_and_plugins_stand_on(api: ModuleType) -> None:
    listed = api.written()
    core = listed["kedit-core"]
    for line in (
        "  Editor: see kedit_core.editing",
        "  class MethodInfo",
        "    operations: frozenset[str]",
        "    def compute_patch(self, context: EditContext, requests: Sequence[EditRequest], hparams: HyperParams)",
        "  class MethodContract",
    ):
        assert f"\n{line}" in core, line
    assert "  class RomeHyperParams(ContextHyperParams)\n" in listed["kedit-methods-locate"]
    assert "\nkedit edit MODEL\n" in listed["commands"] and "\n  --overwrite\n" in listed["commands"]
    assert set(listed) == {*api.distributions(), "commands"}


def test_what_documentation_imports_is_public(api: ModuleType) -> None:
    source = api.Source()
    packages = [name.replace("-", "_") for name in api.distributions()]
    public = {module for package in packages for module in api.public_modules(source, package)}
    pages = [
        *REPO.glob("docs/**/*.md"),
        *REPO.glob("*.md"),
        *REPO.glob("*/README.md"),
        *REPO.glob("plugins/*/README.md"),
    ]
    for page in pages:
        for module in re.findall(r"^\s*(?:from|import) (kedit_[\w.]+)", page.read_text(), re.MULTILINE):
            assert module in public or module not in source.files, (
                f"{page} imports from {module}; add it to scripts/api.py"
            )


def test_what_our_own_distributions_import_is_listed(api: ModuleType) -> None:
    """They ask for `kedit-core>=0.X,<0.(X+1)`, so what they use of it must not change in between unseen."""
    source, used = api.Source(), {"kedit_core.models.parameters": {"bare"}, "kedit_core.patches.canonical": {"dumps"}}
    found = api.used_besides(source, "kedit_core")
    assert all(names <= set(found[module]) for module, names in used.items())
    assert not {*found} & {*api.public_modules(source, "kedit_core")}
    core = api.written()["kedit-core"]
    for module in found:
        assert f"\n{module} {api.IN_PART}\n" in core, module
    assert "def bare(module: nn.Module) -> nn.Module" in core


SOURCE = '''
@frozen
class Thing(Base[int]):
    """Text."""
    name: str
    size: int = field(default=3, validator=ge(1))
    parts: list[int] = field(factory=list)
    _own: int = 0
    KIND = "a"
    @property
    def all(self) -> int: return 1
    @size.validator
    def _check(self, a, b): ...
    @size.default
    def start(self): ...
    def do(self, a: int, *, b: str = "x") -> None: ...
    def _hidden(self) -> None: ...
def act(x=1): ...
NUMBER: Final = 5
Name: TypeAlias = int | str
T = TypeVar("T")
ONE = TWO = 1
'''


def test_definitions_are_shown_as_they_are_written(api: ModuleType) -> None:
    lines = [
        line for node in ast.parse(SOURCE).body for name in api._defined(node) for line in api.described(name, node)
    ]
    assert lines == [
        "class Thing(Base[int])",
        "  name: str",
        "  size: int = 3",
        "  parts: list[int] = list()",
        "  KIND",
        "  @property def all(self) -> int",
        "  def do(self, a: int, *, b: str='x') -> None",
        "def act(x=1)",
        "NUMBER: Final",
        "Name: TypeAlias = int | str",
        "ONE",
        "TWO",
    ]


def test_a_change_is_shown(api: ModuleType) -> None:
    before = {"kedit-core": "room\n  def a(x: int)\n  def b()\n", "gone": "x\n"}
    after = {"kedit-core": "room\n  def a(x: int, y: int)\n  def b()\n"}
    shown = api.difference(before, after).splitlines()
    assert "-  def a(x: int)" in shown and "+  def a(x: int, y: int)" in shown and "-x" in shown
    assert api.difference(before, before) == ""
