"""What requests say of where they come from: files, options, and the part that was taken (datasets, check 8)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from plugins.datasets.reader_tools import FIXTURES, assert_round_trip

from kedit_core import Editor
from kedit_core.editing.datasets import open_requests
from kedit_core.plugins import Catalogue, Host
from kedit_core.testing.tiny import tiny
from kedit_datasets import load
from kedit_datasets.catalogue import DATASETS

ORIGIN = "origin"
FILES = {
    "zsre": "zsre_flat.json",
    "counterfact": "counterfact.json",
    "qaedit": "qaedit.json",
    "fastedit": "fastedit.json",
    "knowedit-recent": "knowedit_recent.json",
    "knowedit-counterfact": "knowedit_counterfact.json",
    "knowedit-zsre": "knowedit_zsre.json",
    "knowedit-wikibio": "knowedit_wikibio.json",
    "convsent": "convsent.json",
    "sanitation": "sanitation_test.json",
    "mquake": "mquake.json",
    "ripple_edits": "ripple.json",
}


def sha(name: str) -> str:
    return hashlib.sha256((FIXTURES / name).read_bytes()).hexdigest()


def origins(requests: Any) -> list[Any]:
    """The distinct ones."""
    return [json.loads(text) for text in dict.fromkeys(json.dumps(r.meta[ORIGIN], sort_keys=True) for r in requests)]


@pytest.mark.parametrize("name", [entry.name for entry in DATASETS])
def test_every_dataset_says_which_file_it_read_and_which_part(name: str) -> None:
    path = FIXTURES / FILES[name]
    file = {"name": path.name, "sha256": sha(path.name)}
    whole, first, drawn = (load(name, path, **more) for more in ({}, {"size": 3}, {"size": 3, "seed": 7}))
    assert origins(whole) == [{"files": [file], "options": {}}]
    assert origins(first) == [{"files": [file], "options": {"size": 3}}]
    assert origins(drawn) == [{"files": [file], "options": {"size": 3, "seed": 7}}]
    cases = len({request.case_id for request in whole})
    assert first.report.notes[-1] == f"the first 3 of {cases} cases"
    assert drawn.report.notes[-1] == f"3 of {cases} cases, drawn by seed 7"
    assert not any("cases" in note for note in whole.report.notes)

    def bare(requests: Any) -> list[Any]:
        return [{**request.meta, ORIGIN: None} for request in requests]

    kept = [request.case_id for request in first]
    assert bare(first) == [meta for meta, r in zip(bare(whole), whole, strict=True) if r.case_id in kept]
    assert kept == [request.case_id for request in whole][: len(kept)]
    for request in first:
        assert_round_trip(request)


def test_of_other_files_too_and_never_where_they_lie(tmp_path: Path) -> None:
    pool, other = tmp_path / "pool" / "zsre_mend.jsonl", tmp_path / "other.json"
    pool.parent.mkdir()
    pool.write_bytes((FIXTURES / "zsre_nq.json").read_bytes())  # another file of the same name
    other.write_text('[{"src": "Who else?"}]')
    (request, *_) = load("zsre", FIXTURES / "zsre_mend.jsonl", nq=str(pool), apart_from=other, target_policy="alt")
    assert request.meta[ORIGIN] == {
        "files": [
            {"name": "other.json", "sha256": hashlib.sha256(other.read_bytes()).hexdigest()},
            *sorted(
                ({"name": "zsre_mend.jsonl", "sha256": sha(each)} for each in ("zsre_mend.jsonl", "zsre_nq.json")),
                key=lambda file: file["sha256"],
            ),
        ],
        "options": {"apart_from": "other.json", "nq": "zsre_mend.jsonl", "target_policy": "alt"},
    }
    assert str(tmp_path) not in json.dumps(request.meta)


def test_a_result_tells_parts_apart() -> None:
    """The digest of a run's requests is another one for another part, option or file, and the tag has the number."""
    host = Host(Catalogue.installed())
    source = f"counterfact:{FIXTURES / 'counterfact.json'}"
    parts = [
        open_requests(source, host, options=options)
        for options in ({"size": 2}, {"size": 2}, {"size": 2, "seed": 0}, {"size": 3}, {"size": 2, "clean": True})
    ]
    editor = Editor(*tiny("gpt2"))
    found = [editor.evaluate(part, protocols=["tf_token"]) for part in parts]
    digests = [evaluation.manifest["requests_digest"] for evaluation in found]
    assert digests[0] == digests[1] and len(set(digests)) == 4
    assert [evaluation.manifest["origins"] for evaluation in found] == [origins(part) for part in parts]
    tags = [evaluation["tf_token.reliability"].tag.rpartition(".")[2] for evaluation in found]
    assert tags == ["2", "2", "2", "3", "2"]


def test_a_patch_does_not_depend_on_the_part_its_facts_came_from() -> None:
    import toy_methods
    from metric_tools import ALONE

    editor = Editor(*tiny("gpt2"), "nudge", catalogue=ALONE.including(*toy_methods.ALL))
    path = FIXTURES / "counterfact.json"
    one, two = (editor.compute(load("counterfact", path, size=size)[0]) for size in (1, 2))
    assert one.id == two.id
