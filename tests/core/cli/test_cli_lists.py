"""The group itself: help, listings, errors and exit codes, all without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from kedit_core import hookimpl
from kedit_core.cli import root
from kedit_core.cli.common import as_json, emit, human_bytes, write_text
from kedit_core.cli.patch import COMMANDS as PATCH_COMMANDS
from kedit_core.errors import InputError, KeditError
from kedit_core.plugins import Catalogue

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "numpy"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from kedit_core.cli import main
sys.argv[0] = "kedit"
main()
"""


def run(*args: str) -> Result:
    return CliRunner().invoke(root.kedit, args)


def entry(name: str, target: Any, group: str = "kedit.commands", distribution: str = "kedit-else") -> Any:
    def load() -> Any:
        if isinstance(target, Exception):
            raise target
        return target

    dist = SimpleNamespace(name=distribution, version="1.0")
    return SimpleNamespace(group=group, name=name, value=f"else:{name}", dist=dist, load=load)


def plug(monkeypatch: pytest.MonkeyPatch, *entries: Any, environ: dict[str, str] | None = None) -> None:
    made = Catalogue.installed(environ=environ or {}, entry_points=entries)
    monkeypatch.setattr(Catalogue, "installed", classmethod(lambda cls: made))


def command(error: BaseException | None) -> click.Command:
    @click.command()
    def act() -> None:
        """Do something."""
        if error is not None:
            raise error

    return act


def test_plugins_for_another_core_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = entry("ahead", ImportError("it was imported"), distribution="kedit-ahead")
    ahead.dist.requires = ["kedit-core>=7,<8"]
    plug(monkeypatch, ahead, entry("fine", command(None)))
    sentence = "kedit-ahead 1.0 works with kedit-core >=7,<8"
    told = run("plugins", "--check")
    assert told.exit_code == 1 and "left out: made for another kedit-core" in told.stdout and sentence in told.stderr
    rows = {row["name"]: row for row in json.loads(run("plugins", "--json").stdout)["plugins"]}
    assert rows["fine"]["active"] and rows["fine"]["note"] == "" and not rows["ahead"]["active"]
    assert "fine" in run("--help").stdout and "ahead" not in run("--help").stdout
    told = run("ahead")
    assert told.exit_code == 1 and f"command 'ahead' cannot be used: {sentence}" in told.stderr


@pytest.mark.parametrize("args", [["--help"], ["methods"], ["models"], ["plugins"], ["patch", "--help"], ["--version"]])
def test_works_with_torch_blocked(args: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED, *args], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.strip()


def test_help_lists_every_command_and_imports_none(monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, entry("broken", ImportError("no such thing")))
    result = run("--help")
    assert result.exit_code == 0
    for name, builtin in root.COMMANDS.items():
        assert name in result.output and builtin.summary in result.output
    assert "from kedit-else" in result.output


@pytest.mark.parametrize("name", root.COMMANDS)
def test_every_command_of_the_table_is_there(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", PATCH_COMMANDS)
def test_every_command_of_patch_is_there_and_says_what_the_table_says(name: str) -> None:
    found = root.kedit.get_command(click.Context(root.kedit), "patch")
    assert isinstance(found, click.Group)
    inner = found.get_command(click.Context(found), name)
    assert inner is not None and inner.get_short_help_str(100) == PATCH_COMMANDS[name].summary


def test_a_plugin_adds_a_command_to_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, entry("patch.polish", command(InputError("no polish"))), entry("mine", command(None)))
    assert "polish" in run("patch", "--help").output and "mine" not in run("patch", "--help").output
    assert "polish" not in run("--help").output
    result = run("patch", "polish")
    assert (result.exit_code, result.stderr) == (2, "Error: no polish\n")
    assert "did you mean 'polish'" in run("patch", "polis").stderr


def test_a_plugin_cannot_take_the_place_of_a_command_of_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, entry("patch.show", command(None)))
    result = run("patch", "show", "x")
    assert result.exit_code == 1 and "'patch.show' is provided by both kedit-core and kedit-else" in result.stderr


def test_listings_in_json() -> None:
    methods = json.loads(run("methods", "--json").stdout)["methods"]
    assert all(
        {"name", "summary", "family", "distribution", "scenarios", "operations"} <= row.keys() for row in methods
    )
    models = json.loads(run("models", "--json").stdout)
    assert {"GPT2LMHeadModel", "LlamaForCausalLM", "T5ForConditionalGeneration"} <= set(models["architectures"])
    plugins = json.loads(run("plugins", "--json").stdout)["plugins"]
    assert ("kedit.plugins", "core-adapters", "kedit-core") in {
        (row["group"], row["name"], row["distribution"]) for row in plugins
    }


def test_json_may_go_to_a_file(tmp_path: Path) -> None:
    result = run("plugins", "--json", str(tmp_path / "out.json"))
    assert "core-adapters" in result.output
    assert json.loads((tmp_path / "out.json").read_text())["plugins"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_narrowing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, entry("mine", command(None)), environ={"KEDIT_PLUGINS": ""})
    result = run("plugins")
    assert "left out by KEDIT_PLUGINS" in result.output
    result = run("mine")
    assert result.exit_code == 2 and "KEDIT_PLUGINS" in result.stderr


def test_plugins_check_imports_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, entry("broken", ImportError("no such thing")))
    assert run("plugins").exit_code == 0
    result = run("plugins", "--check")
    assert result.exit_code == 1
    assert "Left out" in result.stderr and "kedit-else" in result.stderr and "no such thing" in result.stderr


class Misspelt:
    @hookimpl
    def evaluat(self) -> None: ...


class OtherArgument:
    @hookimpl
    def evaluate(self, request: Any) -> None: ...


@pytest.mark.parametrize(("plugin", "word"), [(Misspelt, "'evaluat'"), (OtherArgument, "'request'")])
def test_plugins_check_registers_them(plugin: Any, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, entry("mine", plugin, "kedit.plugins"))
    assert run("plugins").exit_code == 0
    result = run("plugins", "--check")
    assert result.exit_code == 1
    assert "Left out" in result.stderr and "kedit-else" in result.stderr and word in result.stderr


def test_plugins_left_out_of_an_editor_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line each, also when the model cannot be had; broken commands and methods are no matter of the Editor."""
    plug(monkeypatch, entry("mine", Misspelt, "kedit.plugins"), entry("other", ImportError("gone"), "kedit.methods"))
    result = run("generate", str(tmp_path), "--prompt", "a")
    lines = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert result.exit_code == 2 and len(lines) == 1, result.stderr
    assert "kedit-else" in lines[0] and "did you mean 'evaluate'?" in lines[0]


def test_no_method(monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch)
    result = run("methods")
    assert result.exit_code == 0 and "pip install kedit" in result.output


def test_a_plugins_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, entry("mine", command(None)))
    assert run("mine").exit_code == 0


@pytest.mark.parametrize("target", [ImportError("no such thing"), "a string"], ids=["broken", "no command"])
def test_a_broken_command_names_its_distribution(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, entry("mine", target))
    result = run("mine")
    assert result.exit_code == 1
    assert "kedit-else" in result.stderr and "mine" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_clash_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    plug(
        monkeypatch,
        entry("edit", command(None)),
        entry("mine", command(None)),
        entry("mine", command(None), distribution="kedit-other"),
    )
    for name, others in {"edit": ("kedit-core", "kedit-else"), "mine": ("kedit-else", "kedit-other")}.items():
        result = run(name)
        assert result.exit_code == 1
        assert all(other in result.stderr for other in others)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeditError("It failed."), 1, "Error: It failed.\n"),
        (InputError("It was wrong."), 2, "Error: It was wrong.\n"),
        (ValueError("odd"), 1, "an error of its own, ValueError: odd; --debug shows where"),
        (FileNotFoundError(2, "No such file", "here.txt"), 1, "No such file (here.txt)"),
        (KeyboardInterrupt(), 130, "Stopped"),
        (click.Abort(), 1, "Aborted"),
        (click.UsageError("Not so."), 2, "Not so."),
        (SystemExit(7), 7, ""),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors_are_one_sentence(error: BaseException, code: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, entry("act", command(error)))
    result = run("act")
    assert result.exit_code == code
    assert text in result.stderr and "Traceback" not in result.stderr
    if not text:
        assert result.stderr == ""
    assert result.stdout == ""


@pytest.mark.parametrize("args", [("--debug", "act"), ("act", "--debug")])
def test_debug_shows_the_traceback(args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, entry("act", command(KeditError("It failed."))))
    result = run(*args)
    assert result.exit_code == 1
    assert "Traceback" in result.stderr and "Error: It failed." in result.stderr


def test_notes_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    error = KeditError("It failed.")
    error.add_note("in compute_patch of mine")
    plug(monkeypatch, entry("act", command(error)))
    assert "in compute_patch of mine" in run("act").stderr


@pytest.mark.parametrize("args", [["nothing"], ["--nothing"], ["patch", "nothing"], ["plugins", "extra"]])
def test_usage_errors(args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 2 and result.stderr.startswith("Usage: ")


def test_a_slip_of_the_finger_is_understood() -> None:
    assert "did you mean 'plugins'?" in run("plugin").stderr
    assert "'pip install kedit' brings all of kedit's own" in run("zzzzzz").stderr  # it may be of a plugin


def test_version() -> None:
    assert run("--version").output == f"kedit {metadata.version('kedit-core')}\n"


def test_a_closed_pipe_is_quiet() -> None:
    script = "import sys; from kedit_core.cli import main; sys.argv[0] = 'kedit'; main()"
    with subprocess.Popen(
        [sys.executable, "-c", script, "plugins", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_emit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    emit(None, lambda: pytest.fail("not asked for"), lambda: said.append("text"))
    emit("-", lambda: {"b": 1, "a": "é"}, lambda: said.append("more"))
    assert said == ["text"] and capsys.readouterr().out == '{\n  "b": 1,\n  "a": "é"\n}\n'
    with pytest.raises(ValueError):
        as_json(float("nan"))
    with pytest.raises(OSError):
        write_text(tmp_path / "no" / "where", "")
    assert human_bytes(12) == "12 B" and human_bytes(4321) == "4.3 kB"
