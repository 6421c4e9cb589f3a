"""Folders of patches: filled in one step, read strictly, in place or through a web server."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from plugins.hub.hub_kit import made

import kedit_hub
from kedit_core.errors import InputError, KeditError
from kedit_hub import Shelf
from kedit_hub.records import Entry, read_index

pytestmark = pytest.mark.usefixtures("online")


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    folder = tmp_path / "shelf"
    kedit_hub.push(made(1), str(folder), title="Ruritania", tags=("geo",))
    return folder


@pytest.fixture
def served(shelf: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shelf)))
    threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_pushed_to_a_folder_and_pulled(shelf: Path, tmp_path: Path) -> None:
    entry = Shelf.at(shelf).entries()[0]
    assert entry == Entry(
        id=made(1).id,
        file=f"{made(1).id}.safetensors",
        bytes=made(1).size,
        title="Ruritania",
        method="rome",
        base_name="org/model",
        architecture="LlamaForCausalLM",
        tags=("geo",),
    )
    for source in (str(shelf), shelf.as_uri(), f"{shelf}/#{made(1).id[:8]}", (shelf / "index.json").as_uri()):
        pulled = kedit_hub.pull(source)
        pulled.save(tmp_path / "p.safetensors")
        assert (tmp_path / "p.safetensors").read_bytes() == (shelf / entry.file).read_bytes() == made(1).to_bytes()
    assert kedit_hub.pull(pulled.pinned).id == entry.id
    assert Shelf.at(shelf).load(entry.id).id == entry.id
    assert "Ruritania" in (shelf / f"{entry.id}.md").read_text()


def test_relative_folders_are_written_so_that_they_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pushed = kedit_hub.push(made(), "./owner/../shelf".replace("owner/../", ""))
    assert pushed.pinned == f"./shelf#{made().id}" and kedit_hub.pull(pushed.pinned).id == made().id


def test_the_same_patch_twice_is_a_no_op_and_news_are_added(shelf: Path, tmp_path: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in shelf.iterdir()}
    assert not kedit_hub.push(made(1), str(shelf)).changed
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in shelf.iterdir()}
    (tmp_path / "a.sig").write_bytes(b"signed")
    assert kedit_hub.push(made(1), str(shelf), tags=("new",), signature=tmp_path / "a.sig").changed
    entry = Shelf.at(shelf).entries()[0]
    assert (entry.title, entry.tags, entry.signature) == ("Ruritania", ("geo", "new"), f"{entry.file}.sig")
    assert kedit_hub.pull(str(shelf)).signature == b"signed"
    (shelf / entry.file).write_bytes(b"damaged")
    assert kedit_hub.push(made(1), str(shelf)).changed and (shelf / entry.file).read_bytes() == made(1).to_bytes()


def test_several_at_once_are_all_there(shelf: Path) -> None:
    threads = [threading.Thread(target=kedit_hub.push, args=(made(seed), str(shelf))) for seed in range(2, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {entry.id for entry in Shelf.at(shelf).entries()} == {made(seed).id for seed in range(1, 8)}
    with pytest.raises(InputError, match="holds 7 patches; choose one with --id"):
        kedit_hub.pull(str(shelf))


def test_a_locked_or_unwritable_folder(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kedit_hub.shelf._PATIENCE", 0.05)
    with FileLock(shelf / ".index.lock"), pytest.raises(KeditError, match="being written by another process"):
        kedit_hub.push(made(2), str(shelf))
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "none" / "shelf", tmp_path / "file"):
        with pytest.raises(KeditError, match="nothing can be written to the folder"):
            kedit_hub.push(made(2), str(target))


@pytest.mark.parametrize("name", ["index.json", ".index.lock", "ID.safetensors", "ID.safetensors.sig", "ID.md"])
def test_nothing_is_written_through_a_link(name: str, shelf: Path, tmp_path: Path) -> None:
    """A shelf that somebody else made, with links in it to files of the user's."""
    mine = tmp_path / "mine.txt"
    link = shelf / name.replace("ID", made(2).id)
    link.unlink(missing_ok=True)
    for there in (True, False):
        if there:
            mine.write_text("mine")
        link.symlink_to(mine)
        before = sorted(shelf.iterdir())
        with pytest.raises(InputError, match="never written through a link"):
            kedit_hub.push(made(2), str(shelf), signature=_signature(tmp_path))
        assert sorted({*shelf.iterdir()} - {shelf / ".index.lock"}) == sorted({*before} - {shelf / ".index.lock"})
        assert mine.exists() == there and (not there or mine.read_text() == "mine")
        link.unlink()
        mine.unlink(missing_ok=True)


def test_an_interrupted_push_leaves_the_shelf_as_it_was(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kedit_hub.shelf.write_index", full)
    with pytest.raises(KeditError, match="No space left"):
        kedit_hub.push(made(2), str(shelf))
    assert [entry.id for entry in Shelf.at(shelf).entries()] == [made(1).id]
    assert not list(shelf.glob(".kedit-*"))


def test_read_through_a_server(shelf: Path, served: str, tmp_path: Path) -> None:
    kedit_hub.push(made(2), str(shelf), signature=_signature(tmp_path))
    pulled = kedit_hub.pull(f"{served}#{made(2).id}")
    assert pulled.path.read_bytes() == made(2).to_bytes() and pulled.signature == b"signed"
    assert pulled.pinned == f"{served}#{made(2).id}"
    assert kedit_hub.pull(f"{served}index.json", id=made(1).id[:8]).id == made(1).id
    assert kedit_hub.pull(served, id=made(1).id, local_files_only=True).cached
    (shelf / f"{made(1).id}.safetensors").write_bytes(made(3).to_bytes())
    with pytest.raises(KeditError, match="is not what is announced"):
        kedit_hub.pull(served, id=made(1).id, force_download=True)
    (shelf / f"{made(1).id}.safetensors").unlink()
    with pytest.raises(KeditError, match="does not exist"):
        kedit_hub.pull(served, id=made(1).id, force_download=True)
    (shelf / "index.json").unlink()
    with pytest.raises(KeditError, match=r"the index http://127.0.0.1:\d+/index.json does not exist"):
        kedit_hub.pull(served)


def _signature(folder: Path) -> Path:
    (folder / "s.sig").write_bytes(b"signed")
    return folder / "s.sig"


def _changed(change: Callable[[dict[str, Any]], Any]) -> bytes:
    entry = {
        "id": "ab" * 32,
        "file": "p.safetensors",
        "bytes": 1,
        "title": "t",
        "method": "rome",
        "base": {"name": None, "architecture": "A"},
        "tags": [],
        "signature": None,
    }
    index: dict[str, Any] = {"format": 1, "patches": [entry]}
    change(index)
    return json.dumps(index).encode()


def _set(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda index: index["patches"][0].update(values)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[" * 5_000_000, "more than 4000000 JSON values"),
        (b"[]", "does not say which format"),
        (b'{"format": 1, "format": 1, "patches": []}', "gives a key twice"),
        (b'{"format": NaN, "patches": []}', "not a JSON number"),
        (b'{"format": 2, "patches": []}', "has format 2"),
        (b'{"format": true, "patches": []}', "does not say which format"),
        (_changed(lambda index: index.update(more=1)), "other fields"),
        (_changed(lambda index: index["patches"].append(1)), r"patches\[1\]: it has exactly the fields"),
        (_changed(lambda index: index["patches"].append(index["patches"][0])), "lists one id twice"),
        (_changed(_set(file="../p.safetensors")), "file must be a plain file name"),
        (_changed(_set(file="/etc/p.safetensors")), "file must be a plain file name"),
        (_changed(_set(file=".p.safetensors")), "file must be a plain file name"),
        (_changed(_set(file="a\\p.safetensors")), "file must be a plain file name"),
        (_changed(_set(file="p.safetensors\n")), "file must be a plain file name"),
        (_changed(_set(file="p.pt")), "file must be a plain file name"),
        (_changed(_set(id="AB" * 32)), "id must be 64 hexadecimal digits"),
        (_changed(_set(id=None)), "id must be"),
        (_changed(_set(bytes=-1)), "bytes must be"),
        (_changed(_set(bytes=True)), "bytes must be"),
        (_changed(_set(bytes=1.0)), "bytes must be"),
        (_changed(_set(title="a\x1b[2J")), "title must be one line"),
        (_changed(_set(title="")), "title must be one line"),
        (_changed(_set(method="../x")), "method must be"),
        (_changed(_set(base={"name": "a b", "architecture": "A"})), "base.name must be"),
        (_changed(_set(base={"name": None})), "base has exactly the fields"),
        (_changed(_set(tags="geo")), "tags must be a list"),
        (_changed(_set(tags=["<b>"])), "tags must be"),
        (_changed(_set(signature="../p.safetensors.sig")), "signature must be"),
        (_changed(_set(extra=1)), "has exactly the fields"),
    ],
)
def test_an_index_is_read_strictly(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_index(data, "the index")


def test_files_of_the_folder_only(shelf: Path, tmp_path: Path) -> None:
    secret = tmp_path / "outside.safetensors"
    secret.write_bytes(made(1).to_bytes())
    file = shelf / f"{made(1).id}.safetensors"
    file.unlink()
    file.symlink_to(secret)
    with pytest.raises(InputError, match="no plain file of that folder"):
        kedit_hub.pull(str(shelf))
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(InputError, match="no plain file of that folder"):
        kedit_hub.pull(str(shelf))
    file.unlink()
    file.write_bytes(made(1).to_bytes() + b"x")
    with pytest.raises(KeditError, match="where the index says"):
        kedit_hub.pull(str(shelf))
    for place, message in (
        (tmp_path / "none", "there is no folder"),
        (tmp_path, "does not exist; is .* a folder that"),
    ):
        with pytest.raises(InputError, match=message):
            kedit_hub.pull(str(place))
    with pytest.raises(KeditError, match="larger than"):
        kedit_hub.pull(str(shelf), max_bytes=10)
