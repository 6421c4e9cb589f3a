"""Requests by name: files, registered datasets, and copies of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kedit_core import EditRequest, hookimpl
from kedit_core.contract import DatasetInfo
from kedit_core.editing.datasets import dataset_of, open_requests, parse_options
from kedit_core.errors import InputError, UnknownNameError
from kedit_core.plugins import Catalogue, Host
from kedit_core.requests import dump_requests

FACT = EditRequest(prompt="The capital of France is", subject="France", target_new="Oslo")


class Datasets:
    """``towers`` has requests and reads copies; ``books`` only reads; ``texts`` is a corpus."""

    def __init__(self) -> None:
        self.calls: list[tuple[Path | None, dict[str, Any]]] = []

    def read(self, path: Path | None, **options: Any) -> list[EditRequest]:
        self.calls.append((path, options))
        return [FACT] * options.get("size", 2)

    @hookimpl
    def register_datasets(self) -> list[DatasetInfo]:
        return [
            DatasetInfo(name="towers", summary="", requests=lambda: [FACT], read=self.read, options=("size",)),
            DatasetInfo(name="books", summary="", read=self.read, options=("size", "split"), metrics=("fluency",)),
            DatasetInfo(name="texts", summary="", corpus=list),
        ]


@pytest.fixture
def plugin() -> Datasets:
    return Datasets()


@pytest.fixture
def host(plugin: Datasets) -> Host:
    return Host(Catalogue(), extra=[plugin])


def test_names_copies_and_files(tmp_path: Path, plugin: Datasets, host: Host) -> None:
    copy = tmp_path / "copy.json"
    copy.write_text("[]")
    mine = tmp_path / "mine.jsonl"
    dump_requests([FACT, FACT], mine)
    assert open_requests(str(mine), host) == [FACT, FACT] and plugin.calls == []
    assert open_requests("towers", host) == [FACT] and plugin.calls == []
    assert len(open_requests("towers", host, options={"size": 3})) == 3
    assert len(open_requests(f"books:{copy}", host, options={"split": "test"})) == 2
    assert len(open_requests("books", host)) == 2
    assert plugin.calls == [(None, {"size": 3}), (copy, {"split": "test"}), (None, {})]
    assert dataset_of(str(mine), host) is None
    info = dataset_of(f"books:{copy}", host)
    assert info is not None and info.metrics == ("fluency",)


@pytest.mark.parametrize(
    ("source", "options", "error", "said"),
    [
        ("towers", {"split": "test"}, InputError, "has no option 'split'; it has size"),
        ("texts", {}, InputError, "has no edit requests to read"),
        ("texts", {"size": 1}, InputError, "has no option 'size'; it has none"),
        ("books:nowhere.json", {}, InputError, r"no file or folder nowhere.json, where dataset 'books'"),
        ("nowhere.json", {}, InputError, "there is no file nowhere.json"),
        ("towels", {}, UnknownNameError, "towers.*NAME:PATH, with NAME one of towers, books"),
        ("shelf:x", {}, UnknownNameError, "NAME:PATH"),
    ],
)
def test_what_cannot_be_opened(source: str, options: dict[str, Any], error: Any, said: str, host: Host) -> None:
    with pytest.raises(error, match=said):
        open_requests(source, host, options=options)


def test_a_file_takes_no_options(tmp_path: Path, host: Host) -> None:
    dump_requests([FACT], tmp_path / "mine.jsonl")
    with pytest.raises(InputError, match=r"takes no options \(size\)"):
        open_requests(str(tmp_path / "mine.jsonl"), host, options={"size": 1})


def test_options_as_texts() -> None:
    given = ["size=3", "share=0.5", "clean=true", "off=false", "none=null", "split=test", "path=a=b", "empty="]
    assert parse_options(given) == {
        "size": 3, "share": 0.5, "clean": True, "off": False, "none": None, "split": "test", "path": "a=b", "empty": ""
    }  # fmt: skip
    for wrong in ("size", "=3"):
        with pytest.raises(InputError, match="is not KEY=VALUE"):
            parse_options([wrong])
