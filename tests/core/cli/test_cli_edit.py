"""``kedit edit``: what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import toy_methods
from click.testing import CliRunner

from kedit_core import Editor, EditPatch, EditRequest
from kedit_core.cli.edit import _CaseSaver, _show
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
