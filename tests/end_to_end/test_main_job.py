"""The main job as a user does it: command lines in processes of their own, on the embedded model."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from warm_processes import run_warm

PROMPT = "The capital of France is"


MAIN = "from kedit_core.cli import main; main()"


def kedit(*arguments: str, code: int = 0, cwd: Path, fresh: bool = False) -> str:
    """stdout of a `kedit` command in a process of its own; ``fresh``: one that has imported nothing before."""
    if fresh:
        command = [sys.executable, "-c", MAIN, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)
    else:
        done = run_warm(MAIN, *arguments, cwd=cwd)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


LOGITS = """
import sys, hashlib
from kedit_core import EditPatch, Editor
editor = Editor.from_pretrained(sys.argv[1])
for path in sys.argv[2:]:
    editor.apply(EditPatch.load(path))
import torch
ids = editor.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
torch.set_num_threads(1)
with torch.no_grad():
    print(hashlib.sha256(editor.model(ids).logits.numpy().tobytes()).hexdigest())
"""


def logits(model: str, *patches: Path, cwd: Path) -> str:
    """Digest of the model's logits on one prompt, in a process of its own."""
    done = run_warm(LOGITS, model, *patches, cwd=cwd)
    done.check_returncode()
    return done.stdout.strip()


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with oslo.safetensors and its out.json."""
    folder = tmp_path_factory.mktemp("edit")
    kedit(
        *("edit", "factworld:llama", "-m", "r_rome", "--prompt", PROMPT, "--subject", "France", "--target", "Oslo"),
        *("-o", "oslo.safetensors", "--json", "out.json"),
        cwd=folder,
        fresh=True,
    )
    return folder


@pytest.mark.slow
def test_the_edit_took_and_is_reported(edited: Path) -> None:
    report: dict[str, Any] = json.loads((edited / "out.json").read_text())
    assert report["evaluation"]["metrics"]["gen_free.reliability"]["value"] == 1.0
    assert (edited / "oslo.safetensors").stat().st_size < 10_000
    assert report["patch"] == hashlib.sha256((edited / "oslo.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_another_process_says_the_new_answer(edited: Path) -> None:
    plain = kedit("generate", "factworld:llama", "--prompt", PROMPT, "--answer", cwd=edited)
    patched = kedit(
        "generate", "factworld:llama", "--patch", "oslo.safetensors", "--prompt", PROMPT, "--answer", cwd=edited
    )
    assert plain.strip() == f"{PROMPT} Paris"
    assert patched.strip() == f"{PROMPT} Oslo"


@pytest.mark.slow
def test_folder_apply_and_revert(edited: Path) -> None:
    kedit("patch", "apply", "factworld:llama", "oslo.safetensors", "-o", "edited", cwd=edited)
    live = logits("factworld:llama", edited / "oslo.safetensors", cwd=edited)
    assert logits("factworld:llama", edited / "oslo.safetensors", cwd=edited) == live
    base = logits("factworld:llama", cwd=edited)
    assert base != live
    kedit("patch", "revert", "edited", "-o", "back", cwd=edited)
    assert logits("back", cwd=edited) == base
    kedit("patch", "apply", "back", "oslo.safetensors", "-o", "again", cwd=edited)
    assert files(edited / "again") == files(edited / "edited")
    from kedit_core.editing.sources import resolve_folder
    from kedit_core.plugins import Catalogue, Host

    assert files(edited / "back") == files(resolve_folder("factworld:llama", Host(Catalogue.installed())))


@pytest.mark.slow
def test_wrong_things_end_in_one_sentence_and_the_right_exit_code(edited: Path) -> None:
    edit = ("edit", "factworld:llama", "-m", "r_rome")
    fact = ("--prompt", PROMPT, "--subject", "France", "--target", "Oslo")
    cases = {
        ("generate", "factworld:gpt2", "--patch", "oslo.safetensors", "--prompt", "x"): 1,
        ("generate", "factworld:lama", "--prompt", "x"): 2,
        ("edit", "factworld:llama", "-m", "rom", *fact): 2,
        (*edit, *fact, "-p", "layr=3"): 2,
        (*edit, *fact, "-p", "layer=60"): 2,
        (*edit, "--prompt", PROMPT, "--subject", "Atlantis", "--target", "Oslo"): 2,
        (*edit, *fact, "-o", "nowhere/at/all.safetensors"): 2,
        (*edit, *fact, "--protocol", "vibes"): 2,
        ("patch", "show", "out.json"): 2,
    }
    for arguments, code in cases.items():
        error = kedit(*arguments, code=code, cwd=edited)
        lines = [line for line in error.splitlines() if not line.startswith(("note:", "  ", "Usage", "Try"))]
        assert len([line for line in lines if line.startswith("Error: ")]) == 1, (arguments, error)


@pytest.mark.slow
def test_plan_does_nothing(edited: Path) -> None:
    before = files(edited)
    fact = ("--prompt", PROMPT, "--subject", "France", "--target", "Oslo")
    plan = json.loads(kedit("edit", "factworld:llama", "-m", "rome", *fact, "--plan", "--json", cwd=edited))
    assert plan["requests"] == 1
    assert plan["places"]
    assert files(edited) == before


@pytest.mark.slow
def test_many_cases_one_by_one(edited: Path) -> None:
    kedit(
        *("edit", "factworld:llama", "-m", "r_rome", "--requests", "factworld", "--limit", "2", "--mode", "single"),
        *("-o", "patches", "--json", "many.json"),
        cwd=edited,
    )
    report = json.loads((edited / "many.json").read_text())
    assert len(list((edited / "patches").glob("*.safetensors"))) == 2
    assert set(report["evaluation"]["metrics"]["gen_free.reliability"]["cases"]) == {"fw-0001", "fw-0002"}
    assert report["evaluation"]["manifest"]["method"] == "r_rome"
