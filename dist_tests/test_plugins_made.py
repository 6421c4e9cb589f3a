"""A stranger's way: `kedit new-plugin`, build the wheel, install it beside kedit-core's, run its tests, use it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from places import Bare, archive

KINDS = {"method": "My.Editor", "adapter": "kedit-adapter-x2", "metric": "kedit-sure", "dataset": "Towers_And-towns"}


def build(folder: Path) -> Path:
    """The wheel of a generated plugin, built as its README says."""
    command = [sys.executable, "-m", "build", "--no-isolation", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    assert list((folder / "dist").glob("*.tar.gz"))
    return wheel


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Bare:
    """An environment with kedit-core and four plugins, all made by it and installed as wheels."""
    environment = Bare.make(tmp_path_factory.mktemp("strangers") / "env")
    environment.install("kedit-core")
    for kind, name in KINDS.items():
        environment.kedit("new-plugin", name, "--kind", kind, "-o", kind, "--author", "A Stranger <a@example.org>")
        environment.install(build(environment.scratch / kind))
    return environment


@pytest.mark.parametrize("kind", KINDS)
def test_its_own_tests_pass(strangers: Bare, kind: str) -> None:
    """In the environment they are for, against what is installed: their src/ is not on the path."""
    tests = strangers.scratch / f"tests-of-{kind}"
    (strangers.scratch / kind / "tests").rename(tests)
    told = strangers.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tests), str(tests))
    tests.rename(strangers.scratch / kind / "tests")
    assert " passed" in told and "failed" not in told


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_typed(strangers: Bare, kind: str) -> None:
    """`mypy --strict` with the settings of its own pyproject.toml, kedit-core's types being those of its wheel."""
    folder = strangers.scratch / kind
    told = strangers.run(
        "-m", "mypy", "--config-file", str(folder / "pyproject.toml"), str(folder / "src"), str(folder / "tests"),
        environ={"MYPY_CACHE_DIR": str(strangers.scratch / "mypy")},
    )  # fmt: skip
    assert "Success: no issues found" in told


def test_it_is_linted_and_formatted(strangers: Bare) -> None:
    for arguments in (["check"], ["format", "--check"]):
        folders = [str(strangers.scratch / kind) for kind in KINDS]
        command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", *folders]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_kedit_lists_them(strangers: Bare) -> None:
    told = strangers.kedit("plugins", "--check")
    assert all(name in told for name in ("my-editor", "kedit-adapter-x2", "kedit-sure", "towers-and-towns"))
    assert "my_editor" in strangers.kedit("methods") and "OlmoForCausalLM" in strangers.kedit("models")
    assert "sure.probability" in strangers.kedit("metrics") and "towers_and_towns" in strangers.kedit("datasets")


def test_they_edit_together(strangers: Bare, model: str) -> None:
    """The method on the dataset, judged by the metric; the patch is then anybody's."""
    told = strangers.scratch / "result.json"
    strangers.kedit(
        "edit", model, "-m", "my_editor", "-p", "layer=1", "--requests", "towers_and_towns", "--metric", "sure",
        "-o", "towers.safetensors", "--json", str(told),
    )  # fmt: skip
    assert "sure.probability" in json.dumps(json.loads(told.read_text()))
    core = Bare.make(strangers.folder.with_name("core"))
    core.install("kedit-core")
    core.kedit("patch", "verify", str(strangers.scratch / "towers.safetensors"), "--base", model)


def test_one_for_another_core_is_left_out_with_a_word(
    strangers: Bare, bare: Callable[..., Bare], tmp_path: Path
) -> None:
    """Its wheel says which cores it goes with; another one does not import it, and says which to upgrade."""
    bare().kedit("new-plugin", "ahead", "-o", str(tmp_path / "ahead"))
    settings = tmp_path / "ahead" / "pyproject.toml"
    settings.write_text(settings.read_text().replace("kedit-core>=0.1,<0.2", "kedit-core>=7,<8"))
    (tmp_path / "ahead" / "src" / "ahead" / "info.py").write_text("raise SystemExit('it was imported')\n")
    strangers.install(build(tmp_path / "ahead"))
    sentence = "ahead 0.1.0 works with kedit-core >=7,<8, and this is kedit-core 0.1.0; upgrade kedit-core"
    assert sentence in strangers.kedit("plugins") and sentence in strangers.kedit("methods")
    told = strangers.kedit("edit", "nowhere", "-m", "ahead", "--prompt", "a", "--target", "b", code=1)
    assert f"method 'ahead' cannot be used: {sentence}" in told and "Traceback" not in told
    assert "my_editor" in strangers.kedit("methods")
    assert archive("kedit-core", ".whl").exists()
