"""``kedit import-hparams``: what it writes and says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kedit_core.cli.root import kedit
from kedit_core.hparams import read_settings

ROME = """\
alg_name: "ROME"
layers: [5]
v_lr: 5e-1
clamp_norm_factor: 4
mom2_adjustment: true
rewrite_module_tmp: "model.layers.{}.mlp.down_proj"
fp16: true
mystery: 3
"""


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(kedit, [str(arg) for arg in args])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "llama-7b.yaml"
    path.write_text(ROME)
    return path


def test_a_file_is_written_and_every_key_told(file: Path, tmp_path: Path) -> None:
    result = run("import-hparams", file, "-o", tmp_path / "rome.yaml")
    assert result.exit_code == 0, result.output
    assert read_settings(tmp_path / "rome.yaml") == {
        "layer": 5,
        "v_lr": 0.5,
        "clamp_norm_factor": 4,
        "mom2_adjustment": True,
    }
    for key in ("layers", "v_lr", "clamp_norm_factor", "mom2_adjustment", "rewrite_module_tmp", "fp16", "mystery"):
        assert any(line.split()[:1] == [key] for line in result.stdout.splitlines()), key
    assert "llama-7b.yaml: ROME is rome in kedit" in result.stdout
    assert "kedit edit MODEL -m rome --hparams" in result.stdout
    assert "note: EasyEdit's ROME edits the first request" in result.stderr
    assert str(tmp_path) not in (tmp_path / "rome.yaml").read_text()


def test_json(file: Path) -> None:
    told = json.loads(run("import-hparams", file, "--json").stdout)
    assert (told["method"], told["training"], told["checked"]) == ("rome", False, True)
    assert {each["key"]: each["outcome"] for each in told["keys"]}["mystery"] == "unknown"


def test_json_has_no_infinity(tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text("alg_name: ROME\nclamp_norm_factor: .inf\nv_lr: .nan\nstats_dir: [.inf]\n")
    told = json.loads(run("import-hparams", file, "--json").stdout)
    assert [each["value"] for each in told["keys"]] == ["ROME", "inf", "nan", ["inf"]]


def test_without_an_output_the_settings_are_shown(file: Path) -> None:
    result = run("import-hparams", file, "-m", "r_rome")
    assert "# Settings of r_rome for kedit edit" in result.stdout
    assert "clamp_norm_factor: 4" in result.stdout


def test_a_file_cannot_steer_the_terminal_or_the_written_file(tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text('alg_name: LoRA\nlora_type: lora\n"a\\nrank: 99\\e[2J": 1\ntarget_modules: ["q\\e[2J\\nlr: 9"]\n')
    result = run("import-hparams", file, "-o", tmp_path / "out.yaml")
    assert "\x1b" not in result.output
    assert not any(line.startswith(("rank: 99", "lr: 9")) for line in result.output.splitlines())
    assert read_settings(tmp_path / "out.yaml") == {"targets": ["q\x1b[2J\nlr: 9"]}


def test_wrong_input(file: Path, tmp_path: Path) -> None:
    for args, said in (
        (("-o", tmp_path / "rome.txt"), "must end in .yaml"),
        (("-o", file), "would be replaced"),
        (("-m", "grace"), "not grace"),
        (("--training",), "needs no training"),
    ):
        result = run("import-hparams", file, *args)
        assert (result.exit_code, said in result.stderr) == (2, True), result.stderr
    assert file.read_text() == ROME
