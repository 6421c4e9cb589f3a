"""Files of the Hugging Face Hub, through a stand-in for its client: tests have no network."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from plugins.datasets.reader_tools import FIXTURES

from kedit_core.errors import InputError, MissingExtraError
from kedit_datasets.catalogue import Entry, read
from kedit_datasets.hub import fetch


class FakeHub(ModuleType):
    """``huggingface_hub`` with one repository, a folder here."""

    def __init__(self, folder: Path) -> None:
        super().__init__("huggingface_hub")
        self.folder = folder
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.error: Exception | None = None

    def snapshot_download(self, repository: str, **options: Any) -> str:
        self.asked.append((repository, options))
        if self.error is not None:
            raise self.error
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    (tmp_path / "benchmark" / "ZsRE").mkdir(parents=True)
    (tmp_path / "benchmark" / "ZsRE" / "ZsRE-test-all.json").write_text("[]")
    return fake


def test_one_file_of_a_dataset_repository(hub: FakeHub, tmp_path: Path) -> None:
    name = "benchmark/ZsRE/ZsRE-test-all.json"
    assert fetch("knowedit-zsre", "zjunlp/KnowEdit", name) == tmp_path / name
    assert hub.asked == [("zjunlp/KnowEdit", {"repo_type": "dataset", "allow_patterns": [name]})]
    assert fetch("knowedit-zsre", "zjunlp/KnowEdit", "benchmark/ZsRE/*.json") == tmp_path / name


def test_no_file_or_several_are_refused(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "other.json").mkdir()  # a folder is no file
    with pytest.raises(
        InputError, match=r"zjunlp/KnowEdit has no file other\.json; get a copy .* give it as zsre:PATH"
    ):
        fetch("zsre", "zjunlp/KnowEdit", "other.json")
    for name in "ab":
        (tmp_path / f"{name}.json").write_text("[]")
    with pytest.raises(InputError, match=r"has 2 files \*\.json"):
        fetch("zsre", "zjunlp/KnowEdit", "*.json")


def test_without_a_network_a_local_copy_is_asked_for(hub: FakeHub) -> None:
    hub.error = ConnectionError("no route")
    with pytest.raises(InputError, match=r"\(ConnectionError\); check the network, or get .* qaedit:PATH") as caught:
        fetch("qaedit", "WenDingY/QAEdit", "*.json")
    assert caught.value.__cause__ is hub.error


def test_the_real_client_offline_says_the_same() -> None:
    with pytest.raises(InputError, match=r"could not be had .* qaedit:PATH"):
        fetch("qaedit", "WenDingY/QAEdit", "*.json")


def test_a_missing_client_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kedit-datasets\[hub\]'"):
        fetch("qaedit", "WenDingY/QAEdit", "*.json")


def test_a_dataset_without_a_path_comes_from_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "QAEdit.json").write_bytes((FIXTURES / "qaedit.json").read_bytes())
    entry = Entry(
        name="qaedit",
        summary="",
        reader="kedit_datasets.readers.qaedit:read_qaedit",
        options=("source", "first_locality"),
        hub=("WenDingY/QAEdit", "*.json"),
        published="",
    )
    assert [request.case_id for request in read(entry, None, size=2, source="NQ")] == ["NQ:1102", "NQ:1106"]
    elsewhere = Entry(name="zsre", summary="", reader="", published="rome.baulab.info")
    with pytest.raises(InputError, match=r"not on the Hugging Face Hub; get it from rome\.baulab\.info .* zsre:PATH"):
        read(elsewhere, None)
