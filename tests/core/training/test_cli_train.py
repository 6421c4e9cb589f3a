"""``kedit train`` and ``kedit edit --editor``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from core.training.toy_method import catalogue, facts
from gloo_tools import run_ranks
from safetensors.torch import load_file

from kedit_core.cli.root import kedit
from kedit_core.plugins import Catalogue
from kedit_core.requests import dump_requests
from kedit_core.testing.tiny import tiny
from kedit_core.training.folder import read_state


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and requests, the current one; the toy methods are installed."""
    installed = catalogue()
    monkeypatch.setattr(Catalogue, "installed", classmethod(lambda cls: installed))
    monkeypatch.chdir(tmp_path)
    for each in tiny("llama"):
        each.save_pretrained("model")
    dump_requests(facts(), "cases.jsonl")
    dump_requests(facts(3, prefix="So "), "others.jsonl")
    return tmp_path


def run(*words: str, **more: Any) -> Result:
    return CliRunner().invoke(kedit, words, **more)


TRAIN = ("train", "model", "-m", "strength", "--requests", "cases.jsonl", "-o", "editor")


def test_an_editor_is_trained_and_used(place: Path) -> None:
    done = run(*TRAIN, "--validate", "others.jsonl", "--option", "greeting=hi", "--json", "out.json")
    assert done.exit_code == 0, done.output
    assert "with --editor editor" in done.output and "best at" in done.output and "s an iteration" in done.output
    told = json.loads((place / "out.json").read_text())
    assert told["records"] == 12 and told["validation"] == 3 and told["state"]["origin"] == {"greeting": "hi"}
    assert (place / "editor.training" / "metrics.jsonl").is_file()
    edit = ("edit", "model", "-m", "strength", "--requests", "cases.jsonl", "--limit", "2", "--no-evaluate")
    for number, words in enumerate((("--editor", "editor"), ("--with", "editor=editor"))):
        done = run(*edit, *words, "-o", f"p{number}.safetensors")
        assert done.exit_code == 0, done.output
    assert (place / "p0.safetensors").read_bytes() == (place / "p1.safetensors").read_bytes()
    done = run(*edit, "--editor", "editor", "--with", "editor=editor")
    assert done.exit_code == 2 and "give one of them" in done.output
    done = run(*edit, "--editor", "elsewhere")
    assert done.exit_code == 2 and "does not exist" in done.output


def test_a_training_goes_on(place: Path) -> None:
    assert run(*TRAIN, "-p", "iterations=4").exit_code == 0
    first = (place / "editor" / "editor.safetensors").read_bytes()
    done = run(*TRAIN, "--resume")
    assert done.exit_code == 0, done.output
    assert "of 8 iterations" in done.output
    assert (place / "editor" / "editor.safetensors").read_bytes() != first
    done = run(*TRAIN, "--resume", "--anew")
    assert done.exit_code == 2 and "give one of them" in done.output
    assert run(*TRAIN, "--anew").exit_code == 0


def test_a_training_that_is_stopped_says_how_it_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from core.training.toy_method import StrengthTrainer

    run_step, steps = StrengthTrainer.run_step, [0]

    def stopped(self: Any, batch: Any) -> Any:
        steps[0] += torch.is_grad_enabled()
        if steps[0] == 6:
            raise KeyboardInterrupt
        return run_step(self, batch)

    monkeypatch.setattr(StrengthTrainer, "run_step", stopped)
    done = run(*TRAIN)
    assert done.exit_code == 130
    assert "the checkpoint of iteration 4 in editor.training is whole; go on from it with --resume" in done.output
    done = run(*TRAIN)
    assert done.exit_code == 2 and "interrupted at iteration 4" in done.output
    assert run(*TRAIN, "--resume").exit_code == 0
    assert run(*TRAIN).exit_code == 0


def test_where_the_settings_come_from_is_told_before_the_training(place: Path) -> None:
    (place / "small.yaml").write_text(
        "match: {architecture: LlamaForCausalLM, num_layers: 5, hidden_size: 32}\nhparams: {lr: 0.5}\n"
    )
    done = run(*TRAIN, "--preset", "small.yaml")
    assert done.exit_code == 0, done.output
    assert done.output.index("note: preset small is for") < done.output.index("best at")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-m", "untrained"), "needs no training"),
        (("-p", "layres=2"), "did you mean 'layer'"),
        (("-p", "clip=-1"), "clip is -1"),
        (("--option", "greeting"), "is not KEY=VALUE"),
        (("--option", "greting=x"), "no option 'greting'"),
        (("--validate", "cases.jsonl"), "in the training set and in the validation"),
        (("-o", "none/editor"), "does not exist"),
        (("-o", "model"), "is no editor, so it is not replaced"),
        (("--requests", "none.jsonl"), "none.jsonl"),
        (("--resume",), "editor.training holds no training to resume"),
        (("--tensorboard",), "kedit-core[tensorboard]"),
        (("-p", "batch_size=50"), "a smaller batch_size"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(
    words: tuple[str, ...], said: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    done = run(*TRAIN, *words)
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert not (place / "editor").exists() and not (place / "editor.training" / "metrics.jsonl").exists()


RANK = """
import sys
import torch
torch.set_num_threads(1)
from core.training import toy_method
from kedit_core.plugins import Catalogue
installed = toy_method.catalogue()
Catalogue.installed = classmethod(lambda cls: installed)
from kedit_core.cli.root import kedit
kedit.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_two_processes_make_the_editor_of_one(place: Path) -> None:
    """As ``accelerate launch`` starts them: the first writes and tells, the other is silent."""
    pytest.importorskip("accelerate")
    words = ["train", "model", "-m", "strength", "--requests", "cases.jsonl", "--validate", "others.jsonl"]
    alone = run(*words, "-o", "one", "-p", "iterations=8", "-p", "accumulate=2", "-p", "val_interval=4")
    assert alone.exit_code == 0, alone.output
    settings = ["-o", "two", "-p", "iterations=4", "-p", "accumulate=1", "-p", "val_interval=2"]
    said = run_ranks(RANK, [*words, *settings])
    assert "with --editor two" in said[0][0] and " in 2 processes, " in said[0][0] and said[1][0] == ""
    one, two = (load_file(place / name / "editor.safetensors")["strength"] for name in ("one", "two"))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)
    assert read_state(place / "two")["cost"]["processes"] == 2


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "from kedit_core.cli.root import kedit; kedit(['train', '--help'])"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode == 0 and "--validate" in done.stdout, done.stderr
