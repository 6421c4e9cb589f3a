"""Whatever goes wrong on the way is one sentence, and nothing half-written is left."""

from __future__ import annotations

import io
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from plugins.hub.hub_kit import made
from plugins.hub.hub_server import Hub

import kedit_hub
from kedit_core.errors import InputError, KeditError, UnknownNameError
from kedit_hub.faults import printable
from kedit_hub.transfer import download_bytes

REPO = "owner/fact"


@pytest.fixture
def published(hub: Hub) -> Hub:
    hub.lfs_from = 1
    kedit_hub.push_to_hub(made(), REPO)
    hub.asked.clear()
    return hub


def nothing_is_left(tmp_path: Path) -> bool:
    return not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "no such repository, or it is not open to you"),
        (403, "access is refused; use a token"),
        (404, "does not exist|no such repository"),
        (418, "the server answered with status 418"),
        (429, "takes no more requests for now"),
        (500, "the server failed with status 500"),
        (503, "the server failed with status 503"),
    ],
)
@pytest.mark.parametrize("kind", ["info", "resolve", "cdn"])
def test_statuses_of_a_pull(published: Hub, tmp_path: Path, kind: str, status: int, message: str) -> None:
    published.faults[kind] = status
    with pytest.raises(KeditError, match=message) as told:
        kedit_hub.pull(REPO)
    assert REPO in str(told.value) and "\n" not in str(told.value) and nothing_is_left(tmp_path)


@pytest.mark.parametrize(
    ("kind", "status", "message"),
    [
        ("create", 401, "log in with `hf auth login` or HF_TOKEN"),
        ("create", 403, "access is refused; use a token that has the right"),
        ("preupload", 429, "takes no more requests"),
        ("lfs", 500, "the server failed with status 500"),
        ("upload", 503, "the server failed with status 503"),
        ("commit", 409, "changed by somebody else at the same time"),
        ("commit", 412, "changed by somebody else at the same time"),
        ("commit", 403, "access is refused"),
        ("info", 500, "the server failed with status 500"),
    ],
)
def test_statuses_of_a_push(hub: Hub, kind: str, status: int, message: str) -> None:
    hub.lfs_from = 1
    hub.faults[kind] = status
    with pytest.raises(KeditError, match=message) as told:
        kedit_hub.push_to_hub(made(), REPO)
    assert "\n" not in str(told.value)
    assert not hub.repos or not [name for name in hub.files(REPO) if name.endswith(".safetensors")]


def test_what_servers_say_cannot_move_the_cursor(hub: Hub) -> None:
    hub.faults["commit"] = lambda handler: handler.fail(400, message="bad \x1b[2J name")
    with pytest.raises(KeditError, match=r"status 400 \(bad \?\[2J name\)"):
        kedit_hub.push_to_hub(made(), REPO)
    told = b'{"errors": [{"message": "license must be one of those known"}], "warnings": []}'
    hub.faults["validate"] = lambda handler: handler.answer(400, told)
    with pytest.raises(KeditError, match=r"status 400 \(license must be one of those known\)"):
        kedit_hub.push_to_hub(made(), REPO, license="mine")
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    logging.getLogger("huggingface_hub").addHandler(handler)
    try:
        hub.faults["info"] = lambda handler: handler.answer(200, b"{}", X_HF_Warning="a topic; \x1b[2Jall is well")
        with pytest.raises(KeditError, match=REPO):
            kedit_hub.pull(REPO)
    finally:
        logging.getLogger("huggingface_hub").removeHandler(handler)
    assert heard.getvalue() == "?[2Jall is well\n" and not handler.filters
    assert printable("a\n\x1b[31m b\u202e " + "c" * 500).startswith("a ?[31m b? c") and len(printable("c" * 500)) == 200


def test_bodies_that_are_cut_or_too_long(published: Hub, tmp_path: Path) -> None:
    data = made().to_bytes()
    wrong: list[tuple[Any, str]] = [
        (lambda handler: handler.answer(200, data[:-10], Content_Length=str(len(data))), "the connection broke off"),
        (
            lambda handler: handler.answer(200, data[:-10]),
            f"has {len(data) - 10} bytes where {len(data)} were announced",
        ),
        (
            lambda handler: handler.answer(200, data + b"x"),
            f"has {len(data) + 1} bytes where {len(data)} were announced",
        ),
        (lambda handler: handler.answer(200, data, Content_Encoding="gzip"), "comes compressed"),
        (lambda handler: handler.connection.shutdown(socket.SHUT_RDWR), "the connection broke off"),
    ]
    for fault, message in wrong:
        published.faults["cdn"] = fault
        with pytest.raises(KeditError, match=message):
            kedit_hub.pull(REPO)
        assert nothing_is_left(tmp_path)


def test_sizes_are_bounded_as_announced_and_as_they_come(published: Hub, tmp_path: Path) -> None:
    with pytest.raises(KeditError, match="is larger than the 100 B that are taken"):
        kedit_hub.pull(REPO, max_bytes=100)
    assert "resolve" not in published.kinds()  # the list of files told
    sent = []

    def endless(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(bytes(1 << 16))
                sent.append(1 << 16)
        except OSError:
            pass

    published.faults["cdn"] = endless
    with pytest.raises(KeditError, match=r"larger than the 1.0 MB that are taken"):
        download_bytes(f"{published.url}/cdn/{made().id}", what="it", limit=1_000_000)
    assert sum(sent) < 50_000_000
    with pytest.raises(KeditError, match="larger than"):
        published.faults["cdn"] = lambda handler: handler.answer(200, b"", Content_Length=str(10**12))
        download_bytes(f"{published.url}/cdn/{made().id}", what="it", limit=1_000_000)
    assert nothing_is_left(tmp_path)


def test_a_server_that_does_not_answer(published: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    for kind in ("info", "cdn"):
        published.once[kind] = lambda handler: time.sleep(0.4)
        with pytest.raises(KeditError, match="did not answer in time"):
            kedit_hub.pull(REPO)


def test_nobody_there(online: None) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    for call in (
        lambda: kedit_hub.pull(REPO, endpoint=address),
        lambda: kedit_hub.push_to_hub(made(), REPO, endpoint=address),
        lambda: kedit_hub.pull(f"{address}/shelf/"),
        lambda: kedit_hub.search(endpoint=address),
    ):
        with pytest.raises(KeditError, match=r"cannot be reached .*check the address and the network"):
            call()


def test_answers_that_are_not_what_they_should_be(published: Hub) -> None:
    published.faults["info"] = lambda handler: handler.answer(200, b"<html>a portal of a hotel</html>")
    with pytest.raises(KeditError, match=f"{REPO}.*failed"):
        kedit_hub.pull(REPO)


@pytest.fixture
def scripted(online: None) -> Iterator[dict[str, Callable[[], httpx2.Response]]]:
    """https addresses without a network: what each answers."""
    answers: dict[str, Callable[[], httpx2.Response]] = {}
    asked = httpx2.MockTransport(lambda request: answers[str(request.url)]())
    huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=asked))
    yield answers
    from huggingface_hub.utils._http import default_client_factory

    huggingface_hub.set_client_factory(default_client_factory)


def test_redirects_lead_only_to_safe_addresses(scripted: dict[str, Callable[[], httpx2.Response]]) -> None:
    def moved(to: str) -> Callable[[], httpx2.Response]:
        return lambda: httpx2.Response(302, headers={"Location": to})

    start = "https://a.example/x"
    scripted[start] = moved("/y")
    scripted["https://a.example/y"] = moved("https://b.example/z")
    scripted["https://b.example/z"] = lambda: httpx2.Response(200, stream=httpx2.ByteStream(b"whole"))
    assert download_bytes(start, what="it", limit=10) == b"whole"
    for target, message in (
        ("http://b.example/z", "not https"),
        ("http://127.0.0.1/z", "redirected from https to http"),
        ("file:///etc/passwd", "not safe"),
        ("https://user:pass@b.example/z", "not safe"),
        (start, "redirected more than 10 times"),
        ("", "redirected more than 10 times"),
    ):
        scripted[start] = moved(target)
        with pytest.raises(KeditError, match=message):
            download_bytes(start, what="it", limit=10)


def test_http_is_for_this_machine_only(online: None) -> None:
    for call in (
        lambda: kedit_hub.pull(REPO, endpoint="http://hub.example"),
        lambda: kedit_hub.push_to_hub(made(), REPO, endpoint="http://10.0.0.1"),
        lambda: kedit_hub.pull("http://shelf.example/"),
        lambda: kedit_hub.search(index="http://shelf.example/"),
    ):
        with pytest.raises(InputError, match="is not https"):
            call()


def test_what_is_given_wrongly_is_refused_before_anybody_is_asked(hub: Hub, tmp_path: Path) -> None:
    for source in (
        "",
        "name",
        "a/b/c",
        "-a/b",
        "a..b/c",
        "a/b@",
        "a/b@../x",
        "ftp://a/b",
        "https:///x",
        "https://h/?q=1",
    ):
        with pytest.raises(InputError):
            kedit_hub.pull(source)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"id": "12"}, "is no patch's id"),
        ({"id": "zzzzzzzz"}, "is no patch's id"),
        ({"revision": "a b"}, "is no branch, tag or commit"),
    ]
    for arguments, message in wrong:
        with pytest.raises(InputError, match=message):
            kedit_hub.pull(REPO, **arguments)
    with pytest.raises(InputError, match="two ids are given"):
        kedit_hub.pull(f"{REPO}#00000000", id="11111111")
    with pytest.raises(InputError, match="differ; give one"):
        kedit_hub.pull(f"{REPO}@main", revision="next")
    with pytest.raises(InputError, match="has no revisions"):
        kedit_hub.pull(str(tmp_path), revision="main")
    pushes: list[tuple[dict[str, Any], str]] = [
        ({"title": "two\nlines"}, "title must be one line"),
        ({"title": "x" * 201}, "title must be one line"),
        ({"tags": ("a\nb",)}, "tags must be"),
        ({"license": "a license: with colon"}, "is no license's name"),
        ({"commit_message": " "}, "commit message is empty"),
        ({"signature": tmp_path / "none.sig"}, "could not be read"),
        ({"results": tmp_path / "none.json"}, "could not be read"),
    ]
    for arguments, message in pushes:
        with pytest.raises(InputError, match=message):
            kedit_hub.push(made(), REPO, **arguments)
    for target, message in (
        (f"{REPO}#{made().id}", "under its own id"),
        ("https://h.example/shelf/", "push to the folder that it serves"),
    ):
        with pytest.raises(InputError, match=message):
            kedit_hub.push(made(), target)
    with pytest.raises(InputError, match="are for the Hub only"):
        kedit_hub.push(made(), tmp_path.as_uri(), private=True)
    with pytest.raises(InputError, match="no repository of the Hub"):
        kedit_hub.push_to_hub(made(), str(tmp_path))
    assert hub.asked == []


def test_unknown_repositories_and_revisions(published: Hub) -> None:
    with pytest.raises(UnknownNameError, match=r"owner/none on .*no such repository"):
        kedit_hub.pull("owner/none")
    with pytest.raises(UnknownNameError, match="no such branch, tag or commit"):
        kedit_hub.pull(f"{REPO}@v9")
