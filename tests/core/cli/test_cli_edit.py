"""``kedit edit``: what it writes."""

from __future__ import annotations

from pathlib import Path

import toy_methods

from kedit_core import Editor, EditPatch, EditRequest
from kedit_core.cli.edit import _CaseSaver
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
