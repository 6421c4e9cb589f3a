"""What commands write is never what they read, and is known to be writable before the work begins."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import toy_methods
from click.testing import CliRunner, Result
from core.cli.test_cli_patch import make_patch
from safetensors.torch import save_file

from kedit_core import Editor, EditPatch, EditRequest
from kedit_core.cli.edit import _CaseSaver
from kedit_core.cli.outputs import replaceable
from kedit_core.cli.root import kedit
from kedit_core.comparing.comparison import Comparison
from kedit_core.plugins import Catalogue
from kedit_core.testing.tiny import tiny, tiny_model

FACT = ("--prompt", "The capital of France is", "--subject", "France", "--target", "Rome")
CASE: dict[str, Any] = {"prompt": "The capital of France is", "subject": "France", "target_new": "Rome"}


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = Catalogue.installed().including(*toy_methods.ALL)
    monkeypatch.setattr(Catalogue, "installed", classmethod(lambda cls: installed))


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kedit_core.editing.editor.load_model", lambda *_, **__: pytest.fail("a model was loaded"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with requests, a corpus, a preset, two patches and a model's config, in which commands are run."""
    (tmp_path / "cases.jsonl").write_text(json.dumps(CASE) + "\n")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("Some text.\n")
    (tmp_path / "preset.json").write_text("{}")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    model = tiny_model("llama")
    for seed, name in enumerate(("one", "two")):
        make_patch(model, seed).save(tmp_path / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(kedit, [str(each) for each in args])


EDIT = ("edit", "base", "-m", "nudge", "--requests", "cases.jsonl")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*EDIT, "-o", "cases.jsonl"), "-o cases.jsonl is what --requests names"),
        ((*EDIT, "-o", "./text/../cases.jsonl"), "is what --requests names"),
        ((*EDIT, "-o", "link.jsonl"), "is what --requests names"),
        ((*EDIT, "--json", "cases.jsonl"), "--json cases.jsonl is what --requests names"),
        ((*EDIT, "--preset", "preset.json", "--json", "preset.json"), "is what --preset names"),
        ((*EDIT, "--hparams", "preset.json", "-o", "preset.json"), "is what --hparams names"),
        ((*EDIT, "--patch", "one.safetensors", "-o", "one.safetensors"), "is what --patch names"),
        ((*EDIT, "--stats", "two.safetensors", "-o", "two.safetensors"), "is what --stats names"),
        ((*EDIT, "--with", "encoder=two.safetensors", "-o", "two.safetensors"), "is what --with names"),
        ((*EDIT, "--corpus", "text", "--json", "text/a.txt"), "a file of the folder that --corpus names"),
        ((*EDIT, "--json", "base/config.json"), "a file of the folder that MODEL names"),
        ((*EDIT, "-o", "new", "--json", "new"), "are both new; give each a file of its own"),
        (("evaluate", "base", "--requests", "cases.jsonl", "--json", "cases.jsonl"), "is what --requests names"),
        (("evaluate", "base", "--requests", "zsre:cases.jsonl", "--json", "cases.jsonl"), "is what --requests names"),
        (("generate", "base", "--prompt", "a", "--patch", "one.safetensors", "--json", "one.safetensors"), "--patch"),
        (("patch", "show", "one.safetensors", "--json", "one.safetensors"), "is what PATCH names"),
        (("patch", "verify", "one.safetensors", "--json", "one.safetensors"), "is what PATCH names"),
        (("patch", "drop", "one.safetensors", "--case", "#1", "-o", "one.safetensors"), "is what PATCH names"),
        (
            ("patch", "compare", "one.safetensors", "two.safetensors", "--json", "two.safetensors"),
            "is what PATCH names",
        ),
        (("patch", "compare", "one.safetensors", "two.safetensors", "--plot", "a.png", "--json", "a.png"), "are both"),
    ],
)
def test_an_output_that_is_an_input_is_refused(here: Path, words: tuple[str, ...], said: str) -> None:
    (here / "link.jsonl").symlink_to(here / "cases.jsonl")
    before = contents(here)
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert said in result.stderr and result.stderr.count("Error") == 1 and result.stdout == ""
    assert contents(here) == before


def test_a_patch_of_a_stack_file_is_an_input(here: Path) -> None:
    """Whichever command reads the stack, as MODEL or as STACK."""
    assert run("stack", "new", "./base", "one.safetensors", "-o", "stack.yaml").exit_code == 0
    before = contents(here)
    for words, shown in (
        (("edit", "stack.yaml", "-m", "toy_rank_one", *FACT, "-o", "one.safetensors"), "MODEL"),
        (("stack", "show", "stack.yaml", "--json", "one.safetensors"), "STACK"),
    ):
        result = run(*words)
        assert result.exit_code == 2 and f"one.safetensors is what {shown} names" in result.stderr, result.stderr
    assert contents(here) == before


def test_a_name_that_only_looks_like_a_file_is_no_input(here: Path) -> None:
    """A prompt is text, whatever files there are; a device may be given twice; a patch may lie beside a model."""
    for each in tiny("llama"):
        each.save_pretrained(here / "base")
    (here / "Rome").write_text("")
    edit = ("edit", "base", "-m", "nudge", *FACT, "--no-evaluate")
    for more in (("-o", "Rome"), ("-o", os.devnull, "--json", os.devnull), ("-o", "base/p.safetensors")):
        assert run(*edit, *more).exit_code == 0
        again = run(*edit, "-p", "strength=3.0", *more)
        assert again.exit_code == 0, again.output
    assert EditPatch.load(here / "Rome").hparams["strength"] == 3.0
    assert EditPatch.load(here / "base" / "p.safetensors").hparams["strength"] == 3.0


@pytest.mark.usefixtures("no_model")
def test_only_a_patch_is_replaced_by_a_patch(here: Path) -> None:
    save_file({"weight": tiny_model("llama").lm_head.weight.detach()}, here / "model.safetensors")
    (here / "notes").write_text("mine")
    (here / "cut.safetensors").write_bytes((here / "one.safetensors").read_bytes()[:20])
    drop = ("patch", "drop", "one.safetensors", "--case", "#1", "--model", "base")
    before = contents(here)
    for command in (("edit", "base", "-m", "nudge", *FACT), drop):
        for name in ("model.safetensors", "notes", "cut.safetensors", "text/a.txt"):
            result = run(*command, "-o", name)
            assert result.exit_code == 2 and f"-o {name} is there already and is no patch" in result.stderr
    assert contents(here) == before
    assert replaceable(here / "one.safetensors", "kedit") and replaceable(here / "new", "kedit")


def test_cases_saved_in_a_folder_replace_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    requests = [EditRequest(**CASE, case_id="model"), EditRequest(**{**CASE, "target_new": "Oslo"}, case_id="model-2")]
    editor = Editor(*tiny("llama"), "nudge")
    for _ in range(2):  # a second run replaces the patches of the first
        result = editor.edit(requests, scenario="single", evaluate=False, on_patch=_CaseSaver(tmp_path))
        assert (tmp_path / "model.safetensors").read_bytes() == b"weights"
        saved = {EditPatch.load(path).id for path in tmp_path.glob("model-*")}
        assert saved == {patch.id for patch in result.patches}


def refuse_new_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder whose permissions say nothing of it, as /proc is for root."""

    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    "words",
    [
        (*EDIT, "-o", "new"),
        (*EDIT, "--json", "new"),
        (*EDIT, "--mode", "single", "-o", "new"),
        ("patch", "drop", "one.safetensors", "--case", "#1", "--model", "base", "-o", "new"),
        ("patch", "compare", "one.safetensors", "two.safetensors", "--plot", "new.png"),
    ],
)
def test_a_folder_that_takes_no_file_is_told_before_the_work(
    here: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("kedit_core.comparing.overlaps.compare", lambda *_, **__: pytest.fail("it was compared"))
    (here / "cases.jsonl").write_text("".join(json.dumps({**CASE, "case_id": case}) + "\n" for case in "ab"))
    refuse_new_files(monkeypatch)
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert f"nothing can be written to the folder {here} (Permission denied)" in result.stderr


@pytest.mark.usefixtures("no_model")
def test_names_that_no_file_can_have(here: Path) -> None:
    long = "x" * 300
    for option in ("-o", "--json"):
        result = run(*EDIT, option, long)
        assert result.exit_code == 2 and "(File name too long); give another name" in result.stderr, result.output
    assert not list(here.glob(".kedit-*")), "what the check has made is gone"


def test_a_picture_that_fails_takes_nothing_with_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Comparison, "plot", full)
    words = ("patch", "compare", "one.safetensors", "two.safetensors", "--plot", "a.png")
    result = run(*words, "--json", "out.json")
    assert result.exit_code == 2 and "No space left on device" in result.stderr
    assert "cosine" in result.stdout and "picture is in" not in result.stdout
    assert len(json.loads((here / "out.json").read_text())["places"]) == 1
    assert json.loads(run(*words, "--json").stdout) == json.loads((here / "out.json").read_text())


def test_with_json_on_stdout_a_picture_adds_no_line(here: Path) -> None:
    pytest.importorskip("matplotlib")
    words = ("patch", "compare", "one.safetensors", "two.safetensors", "--plot", "a.png")
    assert json.loads(run(*words, "--json").stdout)["places"]
    assert (here / "a.png").read_bytes().startswith(b"\x89PNG")
    assert run(*words).stdout.endswith("\nthe picture is in a.png\n")
