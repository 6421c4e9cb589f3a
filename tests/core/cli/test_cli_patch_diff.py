"""``kedit patch diff`` and ``audit``: what they write and say, and their exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from core.patches.checkpoint_kit import rewrite, save, state

from kedit_core.cli.patch_diff import diff as command
from kedit_core.cli.root import kedit
from kedit_core.comparing.diff import TOLERANCE
from kedit_core.patches import EditPatch
from kedit_core.testing.tiny import tiny_model

DOWN = "model.layers.1.mlp.down_proj.weight"


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(kedit, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    top = tmp_path_factory.mktemp("diff")
    model = tiny_model("llama")
    base = save(model, top / "base")
    generator = torch.Generator().manual_seed(0)
    model.get_parameter(DOWN).data += torch.randn(32, 1, generator=generator) @ torch.randn(1, 80, generator=generator)
    model.model.norm.weight.data[3] = 2
    return base, save(model, top / "edited", max_shard_size="30KB")


@pytest.fixture
def folders(made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with ``base`` and ``edited`` in it."""
    for folder in made:
        shutil.copytree(folder, tmp_path / folder.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_patch_that_gives_the_other_checkpoint(folders: Path) -> None:
    result = run("patch", "diff", "base", "edited", "-o", "d.safetensors")
    assert result.exit_code == 0, result.output
    patch = EditPatch.load("d.safetensors")
    assert patch.base.name is None
    for line in (f"Wrote d.safetensors: patch {patch.id}", "bit for bit", DOWN, "sparse_delta, elements"):
        assert line in result.stdout
    assert result.stderr == ""
    assert run("patch", "apply", "base", "d.safetensors", "-o", "out").exit_code == 0
    assert state(folders / "out") == state(folders / "edited")
    assert "Put it on: kedit patch apply base d.safetensors" in result.stdout
    assert run("patch", "audit", "base", "out", "--patch", "d.safetensors").exit_code == 0
    onward = run("patch", "diff", "out", "base", "-o", "onward.safetensors")
    assert onward.exit_code == 0 and "has patches of kedit on it" in onward.stderr
    assert "Put it on" not in onward.stdout  # that folder would refuse it
    assert run("patch", "apply", "out", "onward.safetensors", "-o", "both").exit_code == 1
    assert run("patch", "revert", "out", "-o", "back").exit_code == 0
    assert (folders / "back/model.safetensors").read_bytes() == (folders / "base/model.safetensors").read_bytes()


def test_with_a_rank(folders: Path) -> None:
    result = run("patch", "diff", "base", "edited", "-o", "d.safetensors", "--rank", "2", "--json")
    told = json.loads(result.stdout)
    assert [place["operation"] for place in told["places"]] == ["low_rank_delta", "sparse_delta"]
    assert (told["exact"], told["places"][0]["exact"], told["places"][0]["rank"]) == (False, False, 1)
    assert 0 <= told["places"][0]["error"] < 1e-3
    assert told["patch"] == EditPatch.load("d.safetensors").id
    text = run("patch", "diff", "base", "edited", "-o", "d.safetensors", "--rank", "2")
    assert "low_rank_delta, rank 1" in text.stdout
    assert "1 of 2 weights do not come out bit for bit" in text.stderr
    strict = run("patch", "diff", "base", "edited", "-o", "d.safetensors", "--rank", "2", "--tolerance", "0")
    assert "low rank would miss" in strict.stdout
    assert "Every one of these weights comes out bit for bit." in strict.stdout


def test_places(folders: Path) -> None:
    result = run("patch", "diff", "base", "edited", "-o", "d.safetensors", "--places", "*norm*")
    assert EditPatch.load("d.safetensors").places == ("model.norm.weight",)
    assert "1 more parameters differ" in result.stderr


def test_nothing_differs_or_cannot_be_said(folders: Path) -> None:
    same = run("patch", "diff", "base", "base", "-o", "d.safetensors")
    assert (same.exit_code, "agree in every weight" in same.stderr) == (1, True)
    rewrite(folders / "base", lambda tensors: {name: value.half() for name, value in tensors.items()})
    other = run("patch", "diff", "base", "edited", "-o", "d.safetensors")
    assert (other.exit_code, "stored as F32, and as F16 in BASE" in other.stderr) == (1, True)
    assert not (folders / "d.safetensors").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--tolerance", "1"), "--tolerance"),
        (("--rank", "0"), "--rank"),
        (("--places", "nothing"), "no parameter"),
        (("--originals",), "was not edited by kedit"),
        (("-o", "base/model.safetensors"), "would be replaced"),
        (("-o", "no/where.safetensors"), "does not exist"),
    ],
)
def test_wrong_input(folders: Path, args: tuple[str, ...], said: str) -> None:
    result = run("patch", "diff", "base", "edited", "-o", "d.safetensors", *args)
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr
    assert not (folders / "d.safetensors").exists()


def test_the_default_tolerance_is_told_once() -> None:
    assert next(option.default for option in command.params if option.name == "tolerance") == TOLERANCE


# ---------------------------------------------------------------------- audit


def test_what_was_changed(folders: Path) -> None:
    (folders / "edited/tokenizer.json").write_text("{}")
    result = run("patch", "audit", "base", "edited")
    assert result.exit_code == 0, result.output
    row = next(line for line in result.stdout.splitlines() if line.startswith(DOWN)).split()
    assert row[1:7] == ["low", "rank", "2560", "32", "80", "1"]
    assert "2 of 30 parameters and buffers differ." in result.stdout
    assert "tokenizer.json is in EDITED_MODEL only" in result.stdout
    told = json.loads(run("patch", "audit", "base", "edited", "--json", "--quick").stdout)
    assert [(each["place"], each["rank"], each["explained"]) for each in told["tensors"]] == [
        (DOWN, None, None),
        ("model.norm.weight", None, None),
    ]
    assert (told["unchanged"], told["claim"], told["files"][0]["name"]) == (False, None, "tokenizer.json")


def test_exit_codes(folders: Path) -> None:
    assert run("patch", "audit", "base", "edited", "--expect-unchanged").exit_code == 1
    same = run("patch", "audit", "base", "base", "--expect-unchanged")
    assert (same.exit_code, "All weights are the same." in same.stdout) == (0, True)
    run("patch", "diff", "base", "edited", "-o", "part.safetensors", "--places", "*norm*")
    wrong = run("patch", "audit", "base", "edited", "--patch", "part.safetensors")
    assert wrong.exit_code == 1
    assert f"{DOWN} is not as MODEL with the patches given has it" in wrong.stderr
    assert "are not exactly MODEL with the patches given" in wrong.stderr
    assert run("patch", "audit", "base", "nothing").exit_code == 2


def test_a_folder_that_kedit_edited(folders: Path) -> None:
    run("patch", "diff", "base", "edited", "-o", "d.safetensors")
    run("patch", "apply", "base", "d.safetensors", "-o", "out")
    honest = run("patch", "audit", "base", "out")
    assert f"Its record claims patch {EditPatch.load('d.safetensors').id} (diff)" in honest.stdout
    assert "Its weights are MODEL with exactly the patches it claims, bit for bit." in honest.stdout
    rewrite(folders / "out", lambda tensors: tensors[DOWN].add_(1))
    disturbed = run("patch", "audit", "base", "out")
    assert disturbed.exit_code == 0
    assert "cannot be believed" in disturbed.stderr
