"""``kedit new-plugin``: what it makes is linted, compiles and is what it says; what it cannot make, it does not begin.

That the plugins' own tests pass, installed as wheels beside kedit-core's, dist_tests/test_plugins_made.py shows.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kedit_core.cli import new_plugin_files, root
from kedit_core.cli.new_plugin_files import KINDS, core_range, plugin_files, write_plugin
from kedit_core.cli.plugin_names import plugin_names
from kedit_core.contract import MethodInfo
from kedit_core.errors import InputError
from kedit_core.hparams import load_presets
from kedit_core.plugins import METHODS, PLUGINS, Catalogue, Host

LONGEST = "Zz-0123456789.0123456789_0123456789-0123"  # as long as a name may be
NAMES = ("My.Editor", "kedit-x2", LONGEST)


def run(*args: str) -> Result:
    return CliRunner().invoke(root.kedit, ["new-plugin", *args])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every kind under every name, as KIND-NUMBER."""
    folder = tmp_path_factory.mktemp("plugins")
    author = 'Zoë "Z" <z@example.org>'
    for kind in KINDS:
        done = run(NAMES[0], "--kind", kind, "-o", str(folder / f"{kind}-0"), "--author", author)
        assert done.exit_code == 0, done.output
        for number, name in enumerate(NAMES[1:], start=1):
            write_plugin(folder / f"{kind}-{number}", plugin_files(kind, plugin_names(name), author=author))
    return folder


@pytest.fixture
def importable(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Puts one of them on the path as if it were installed; gives its catalogue."""

    def install(kind: str) -> Catalogue:
        source = made / f"{kind}-1"
        monkeypatch.syspath_prepend(str(source / "src"))
        project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
        ((group, entries),) = project["entry-points"].items()
        ((name, value),) = entries.items()
        info = source / "src" / "x2.dist-info"
        info.mkdir(exist_ok=True)
        requires = "".join(f"Requires-Dist: {each}\n" for each in project["dependencies"])
        (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: 0.1.0\n{requires}\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
        return Catalogue.installed(environ={"KEDIT_PLUGINS": "kedit-x2"})

    yield install
    for module in [name for name in sys.modules if name.split(".")[0] == "kedit_x2"]:
        del sys.modules[module]


def test_it_is_linted_and_formatted(made: Path) -> None:
    for arguments in (["check"], ["format", "--check", "--diff"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, "--no-cache", str(made)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_it_compiles_and_nothing_is_left_unfilled(made: Path) -> None:
    for path in (each for each in made.rglob("*") if each.is_file()):
        text = path.read_text("utf-8")
        assert "@@" not in text and "PACKAGE" not in path.parts and path.suffix != ".in", path
        if path.suffix == ".py":
            compile(text, str(path), "exec")


def test_no_class_has_a_name_that_is_used_already() -> None:
    """``kedit new-plugin tensor`` made a class Tensor beside the one of torch, and ``none`` no Python at all."""
    imported = re.findall(r"\b[A-Z]\w+", "\n".join(re.findall(r"^from .*import (.*)$", _method("x-y"), re.M)))
    assert {"Tensor", "Rows"} < set(imported)
    for word in (*imported, "None", "True", "False"):
        name = "kedit-" + re.sub(r"(?<=[a-z])(?=[A-Z])", "-", word)
        made = ast.parse(_method(name))
        classes = {each.name for each in ast.walk(made) if isinstance(each, ast.ClassDef)}
        names = [each.name for line in made.body if isinstance(line, ast.ImportFrom) for each in line.names]
        assert len(classes) == 1 and classes.isdisjoint(names), name


def _method(name: str) -> str:
    names = plugin_names(name)
    return plugin_files("method", names)[Path("src", names.package, "method.py")]


@pytest.mark.parametrize("kind", KINDS)
def test_the_project_says_what_pip_and_kedit_need(made: Path, kind: str) -> None:
    folder = made / f"{kind}-0"
    settings = tomllib.loads((folder / "pyproject.toml").read_text())
    project = settings["project"]
    assert (project["name"], project["version"]) == ("my-editor", "0.1.0")
    assert project["authors"] == [{"name": 'Zoë "Z"', "email": "z@example.org"}]
    assert f"kedit-core{core_range()}" in project["dependencies"] and "Typing :: Typed" in project["classifiers"]
    ((group, entries),) = project["entry-points"].items()
    assert group == (METHODS if kind == "method" else PLUGINS) and list(entries) == ["my_editor"]
    package = folder / "src" / "my_editor"
    shipped = {
        path
        for pattern in settings["tool"]["setuptools"]["package-data"]["my_editor"]
        for path in package.glob(pattern)
    }
    assert shipped == {path for path in package.rglob("*") if path.is_file() and path.suffix != ".py"}
    for name in ("README.md", "LICENSE", ".gitignore", ".github/workflows/ci.yml", "src/my_editor/py.typed"):
        assert (folder / name).is_file()
    assert list((folder / "tests").glob("test_*.py"))


def test_kedit_takes_the_method(importable: Any) -> None:
    catalogue = importable("method")
    info = catalogue.method("x2")
    assert isinstance(info, MethodInfo) and catalogue.find(METHODS, "x2").provider == "kedit-x2 0.1.0"
    assert info.presets is not None and len(load_presets(info.presets)) == 2
    for preset in load_presets(info.presets):
        assert catalogue.hparams_class(info).from_dict(preset.hparams).layer == 4
    host = Host(catalogue, info)
    assert type(host.method_plugin).__name__ == "X2" and catalogue.problems == []


def test_kedit_takes_the_others(importable: Any) -> None:
    assert [each.name for each in Host(importable("metric")).metrics() if each.group == "x2"] == ["x2.probability"]


def test_kedit_takes_the_dataset(importable: Any) -> None:
    dataset = Host(importable("dataset")).dataset("x2")
    assert dataset.requests is not None and dataset.read is not None
    assert [each.case_id for each in dataset.requests()] == ["eiffel", "pisa", "cn"]
    assert dataset.read(None, size=1) == dataset.requests()[:1]


def test_kedit_takes_the_adapter(importable: Any) -> None:
    assert any("OlmoForCausalLM" in each.architectures for each in Host(importable("adapter")).adapters())


def test_the_command_tells_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("kedit-methods-mine", "--license", "MIT", "--json")
    told = json.loads(done.stdout)
    assert (told["folder"], told["name"], told["package"]) == ("kedit-methods-mine", "mine", "kedit_methods_mine")
    there = sorted(
        path.relative_to(told["folder"]).as_posix() for path in Path(told["folder"]).rglob("*") if path.is_file()
    )
    assert sorted(told["files"]) == there
    assert "the authors of kedit-methods-mine" in Path("kedit-methods-mine/LICENSE").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["kedit-methods-mine"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "no name of a distribution"),
        ("-x", "no name of a distribution"),
        ("a/b", "no name of a distribution"),
        ("édith", "no name of a distribution"),
        ("x\n", "no name of a distribution"),
        ("x" * 41, "41 characters"),
        ("2fast", "cannot import; take another, such as kedit-2fast"),
        ("class", "cannot import"),
        ("json", "Python has a module 'json'"),
        ("kedit", "kedit itself"),
        ("Kedit_Core", "kedit itself"),
        ("torch", "'torch' is installed here already"),
        ("kedit-methods-locate", "is installed here already"),
        ("kedit-methods-rome", "provided by kedit-methods-locate"),
    ],
)
def test_names_that_cannot_be(name: str, told: str, tmp_path: Path) -> None:
    done = run("-o", str(tmp_path / "new"), "--", name)
    assert done.exit_code == 2 and told in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "kedits"),
    [
        ("kedit-metric-odd", "odd"),
        ("kedit-2x", "kedit_2x"),
        ("kedit-class", "kedit_class"),
        ("keditor", "keditor"),
        ("a.b_c-d", "a_b_c_d"),
    ],
)
def test_what_kedit_calls_it(name: str, kedits: str) -> None:
    assert plugin_names(name).name == kedits


@pytest.mark.parametrize("author", ["", "<a@b.c>", "A <nothing>", "A\nB", "A <a@b.c> B"])
def test_authors_that_are_none(author: str, tmp_path: Path) -> None:
    done = run("mine", "--author", author, "-o", str(tmp_path / "new"))
    assert done.exit_code == 2 and "--author" in done.stderr and not list(tmp_path.iterdir())


def test_nothing_is_replaced_and_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("there", "dangling"):
        done = run("mine", "-o", str(tmp_path / name))
        assert done.exit_code == 2 and "is there already" in done.stderr
    assert run("mine", "-o", str(tmp_path / "no" / "such")).exit_code == 2
    before = sorted(tmp_path.iterdir())
    contents = plugin_files("metric", plugin_names("mine"))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(new_plugin_files.Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_plugin(tmp_path / "new", contents)
    assert sorted(tmp_path.iterdir()) == before and not list(there.iterdir())


def test_the_range_of_cores() -> None:
    assert [core_range(each) for each in ("0.1.0", "0.12.3", "1.4.0", "2.0.1.dev3")] == [
        ">=0.1,<0.2",
        ">=0.12,<0.13",
        ">=1.4,<2",
        ">=2.0,<3",
    ]
    assert core_range() == core_range(metadata.version("kedit-core"))
    with pytest.raises(InputError):
        plugin_names("kedit.core")


def test_it_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; from kedit_core.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "new-plugin", "mine", "-o", str(tmp_path / "x")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
