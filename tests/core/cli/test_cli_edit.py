"""``kedit edit``: what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import toy_methods
from click.testing import CliRunner

from kedit_core import Editor, EditPatch, EditRequest
from kedit_core.cli.common import human_bytes
from kedit_core.cli.edit import _CaseSaver, _show
from kedit_core.cli.plan import human_time, show_plan
from kedit_core.cli.root import kedit
from kedit_core.plugins import Catalogue
from kedit_core.testing.tiny import tiny


def test_every_case_has_a_file_of_its_own(tmp_path: Path) -> None:
    """Case ids that differ only in what a file's name cannot hold, and one that looks like a name made for another."""
    ids = ("a/b", "a_b", "a:b", "a_b-2")
    requests = [
        EditRequest(prompt="The capital of France is", target_new=target, case_id=case)
        for case, target in zip(ids, ("Rome", "Paris", "Oslo", "Bern"), strict=True)
    ]
    editor = Editor(*tiny("llama"), "nudge", catalogue=Catalogue.installed().including(*toy_methods.ALL))
    saver = _CaseSaver(tmp_path / "patches")
    result = editor.edit(requests, scenario="single", evaluate=False, on_patch=saver)
    files = sorted((tmp_path / "patches").iterdir())
    assert {EditPatch.load(file).id for file in files} == {patch.id for patch in result.patches}
    assert len(files) == len(saver.names) == 4


def test_a_case_id_longer_than_a_files_name_has_a_file(tmp_path: Path) -> None:
    requests = [
        EditRequest(prompt="The capital of France is", target_new=target, case_id="東" * 300 + target)
        for target in ("Rome", "Oslo")
    ]
    editor = Editor(*tiny("llama"), "nudge", catalogue=Catalogue.installed().including(*toy_methods.ALL))
    result = editor.edit(requests, scenario="single", evaluate=False, on_patch=_CaseSaver(tmp_path))
    assert {EditPatch.load(file).id for file in tmp_path.iterdir()} == {patch.id for patch in result.patches}


REQUESTS = [
    EditRequest(prompt=f"The capital of {land} is", target_new=town)
    for land, town in (("France", "Rome"), ("Chad", "Oslo"))
]


def shown(capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    editor = Editor(*tiny("llama"), "nudge", catalogue=Catalogue.installed().including(*toy_methods.ALL))
    _show(editor.edit(REQUESTS, **options), [], [], None, None)
    return capsys.readouterr().out


def test_answers_of_a_few_edits_are_shown_together(capsys: pytest.CaptureFixture[str]) -> None:
    for scenario in ("batch", "sequential"):
        header, *rows = shown(capsys, scenario=scenario).splitlines()[:3]
        assert header.split() == ["prompt", "before", "after", "wanted"]
        for row, request in zip(rows, REQUESTS, strict=True):
            assert row.startswith(request.prompt) and row.endswith(request.target_new)
    assert "wanted" not in shown(capsys, scenario="single")
    assert "wanted" not in shown(capsys, scenario="batch", evaluate=False)


def test_an_edit_that_is_not_saved_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    last = shown(capsys, evaluate=False).splitlines()[-1]
    assert last == "no patch was saved; give -o FILE (or -o FOLDER with --mode single)"


def test_many_cases_are_not_written_to_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = Catalogue.installed().including(*toy_methods.ALL)
    monkeypatch.setattr(Catalogue, "installed", classmethod(lambda cls: installed))
    source = tmp_path / "cases.json"
    source.write_text(
        json.dumps([{"prompt": r.prompt, "subject": r.prompt.split()[3], "target_new": r.target_new} for r in REQUESTS])
    )
    arguments = ["edit", "no/model", "-m", "nudge", "--requests", str(source), "--mode", "single"]
    result = CliRunner().invoke(kedit, [*arguments, "-o", str(tmp_path / "all.safetensors")])
    assert result.exit_code == 2 and "mode single writes one per case; give a folder" in result.stderr


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder, with the toy methods installed."""
    installed = Catalogue.installed().including(*toy_methods.ALL)
    monkeypatch.setattr(Catalogue, "installed", classmethod(lambda cls: installed))
    for each in tiny("llama"):
        each.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


FACT = ("--prompt", "The capital of France is", "--subject", "France", "--target", "Rome")


def run(*args: str | Path, code: int = 0) -> Any:
    result = CliRunner().invoke(kedit, [str(each) for each in ("edit", *args)])
    assert result.exit_code == code, result.output
    return result


def preset(path: Path, layers: int, **hparams: Any) -> Path:
    match = {"architecture": "LlamaForCausalLM", "num_layers": layers, "hidden_size": 32}
    path.write_text(json.dumps({"match": match, "hparams": hparams}))
    return path


def test_a_preset_of_the_users(base: Path, tmp_path: Path) -> None:
    layers = tiny("llama")[0].config.num_hidden_layers
    chosen = preset(tmp_path / "mine.json", layers, layer=2, strength=3.0)
    edit = (base, "-m", "nudge", *FACT, "--no-evaluate")
    result = run(*edit, "--preset", chosen, "-p", "strength=5.0", "-o", tmp_path / "patch")
    assert EditPatch.load(tmp_path / "patch").hparams == {"layer": 2, "strength": 5.0}
    assert "is for" not in result.stderr  # it is for this very shape
    plan = json.loads(run(*edit, "--preset", chosen, "--plan", "--json").stdout)
    assert plan["hparams"]["sources"] == {"layer": "preset mine", "strength": "preset mine"}


def test_a_preset_for_another_model_is_used_and_said(base: Path, tmp_path: Path) -> None:
    chosen = preset(tmp_path / "big.json", 32, layer=2)
    result = run(base, "-m", "nudge", *FACT, "--no-evaluate", "--preset", chosen, "-o", tmp_path / "patch")
    assert EditPatch.load(tmp_path / "patch").hparams["layer"] == 2
    (told,) = (line for line in result.stderr.splitlines() if "preset big" in line)
    assert told.startswith("note: preset big is for LlamaForCausalLM") and "32 layers" in told
    assert "and this model is LlamaForCausalLM" in told


def test_a_wrong_preset_is_refused(base: Path, tmp_path: Path) -> None:
    edit = (base, "-m", "nudge", *FACT, "-o", tmp_path / "patch", "--preset")
    assert "layr" in run(*edit, preset(tmp_path / "a.json", 4, layr=2), code=2).stderr
    (tmp_path / "b.json").write_text("{}")
    assert "match is missing" in run(*edit, tmp_path / "b.json", code=2).stderr
    assert "does not exist" in run(*edit, tmp_path / "nothing.yaml", code=2).stderr
    assert not (tmp_path / "patch").exists()


def test_a_plan_for_people(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2_000_000))
    result = run(base, "-m", "droppable", *FACT, "--plan", "-o", tmp_path / "patch")
    rows = dict(line.split(None, 1) for line in result.stdout.partition("\n\n")[0].splitlines()[1:])
    model = tiny("llama")[0]
    size = sum(each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers()))
    assert rows["places"].strip() == "model.layers.1.mlp.down_proj.weight"
    assert rows["time"].strip() == "about 0.5 s" and rows["patch"].strip() == "about 500 B"
    assert rows["memory"].strip() == f"about 1.0 kB beside the model's {human_bytes(size)}; 2.0 MB free on cpu"
    assert rows["requests"].strip() == "1, batch, in 1 round" and rows["note"].strip() == "one delta for each fact"
    assert "LlamaForCausalLM" in rows["model"] and "width 32, float32" in rows["model"]
    assert result.stdout.endswith("Nothing was done.\n") and "warning" not in result.stderr
    assert not (tmp_path / "patch").exists()


def test_a_plan_that_does_not_fit_and_one_that_tells_nothing(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=900))
    result = run(base, "-m", "droppable", *FACT, "--plan")
    assert "warning: the edit needs about 1.0 kB beside the model and 900 B are free on cpu" in result.stderr
    assert json.loads(run(base, "-m", "droppable", *FACT, "--plan", "--json").stdout)["fits"] is False
    text = run(base, "-m", "nudge", *FACT, "--plan").stdout
    assert text.count("not told by the method") == 2 and "the method does not tell what it needs" in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.01, "less than 0.1 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3599.7, "1 h"),
        (7500, "2 h 5 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_time_in_words(seconds: float, words: str) -> None:
    assert human_time(seconds) == words


def test_many_places_are_cut_on_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    editor = Editor(*tiny("llama"), "nudge", catalogue=Catalogue.installed().including(*toy_methods.ALL))
    plan = {**editor.plan(REQUESTS), "places": [f"place.{i}" for i in range(12)]}
    show_plan(plan)
    text = capsys.readouterr().out
    assert "place.7" in text and "and 4 more" in text and "place.8" not in text
