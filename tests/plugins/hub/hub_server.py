"""A Hub on this machine: the endpoints that huggingface_hub uses to push, list and read models, over real HTTP.

Files over ``lfs_from`` bytes go through LFS, and are read through a redirect, as on the Hub. It can be told to fail.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from attrs import define, field

TOKEN = "hf_ofthetest"

Answer = tuple[int, dict[str, str], bytes]
Fault = Callable[["_Handler"], None]


@define
class Repo:
    """Commits, oldest first: sha -> files; branches and what each points to."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(factory=dict)
    heads: dict[str, str] = field(factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(repr((len(self.commits), branch, sorted(files))).encode()).hexdigest()
        self.commits[sha], self.heads[branch] = files, sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.heads.get(revision, revision if revision in self.commits else None)


class Hub:
    """The state behind the server.

    Attributes:
        repos: by name.
        faults: what a kind of request gets instead, each as long as it is there: a status, or a function that answers.
            Kinds: create, validate, preupload, lfs, upload, info, resolve, cdn, commit, search.
        once: the same, each used once.
        asked: kind, path and headers of every request.
        lfs_from: bytes from which a file goes through LFS.
    """

    def __init__(self) -> None:
        self.url = ""
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: dict[str, int | Fault] = {}
        self.once: dict[str, int | Fault] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.lfs_from = 1024
        self.before_commit: Callable[[], None] | None = None

    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.asked]

    def files(self, name: str) -> dict[str, bytes]:
        repo = self.repos[name]
        return repo.commits[repo.heads["main"]]

    def put(self, name: str, **files: bytes) -> None:
        """A repository that somebody made by hand."""
        repo = self.repos.setdefault(name, Repo())
        repo.commit("main", files)

    @contextmanager
    def running(self) -> Iterator[Hub]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(self._chunks())
        else:
            self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urlsplit(self.path)
        path, self.query = unquote(parts.path), parse_qs(parts.query)
        for kind, method, pattern in _ROUTES:
            if self.command == method and (found := re.fullmatch(pattern, path)):
                self.hub.asked.append((kind, path, {name.lower(): value for name, value in self.headers.items()}))
                fault = self.hub.once.pop(kind, None) or self.hub.faults.get(kind)
                if callable(fault):
                    fault(self)
                elif fault is not None:
                    self.fail(fault)
                else:
                    getattr(self, f"on_{kind}")(*found.groups())
                return
        self.fail(404)

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def fail(self, status: int, code: str = "", message: str = "") -> None:
        self.answer(status, json.dumps({"error": message}).encode(), X_Error_Code=code, X_Error_Message=message)

    # ------------------------------------------------------------------ what a push uses

    def _allowed(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self.fail(401, message="Invalid username or password.")
        return False

    def on_create(self) -> None:
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if not self._allowed():
            return
        if name in self.hub.repos:
            told = {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
            self.answer(409, json.dumps(told).encode())
            return
        repo = self.hub.repos[name] = Repo(private=wanted.get("visibility") == "private")
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.json({"url": f"{self.hub.url}/{name}", "id": name})

    def on_validate(self) -> None:
        self.json({"errors": [], "warnings": []})

    def on_preupload(self, name: str, _: str) -> None:
        if name not in self.hub.repos:
            self.fail(404, "RepoNotFound")
            return
        files = json.loads(self.body)["files"]
        self.json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs"
                        if file["size"] >= self.hub.lfs_from and file["path"] != "README.md"
                        else "regular",
                        "shouldIgnore": False,
                    }
                    for file in files
                ]
            }
        )

    def on_lfs(self, name: str) -> None:
        objects = json.loads(self.body)["objects"]
        upload = [{**each, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}} for each in objects]
        self.json({"transfer": "basic", "objects": upload})

    def on_upload(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.blobs[oid] = self.body
        self.answer(200)

    def on_commit(self, name: str, branch: str) -> None:
        if not self._allowed():
            return
        if self.hub.before_commit is not None:
            meanwhile, self.hub.before_commit = self.hub.before_commit, None
            meanwhile()
        repo = self.hub.repos[name]
        lines = [json.loads(line) for line in self.body.splitlines()]
        if lines[0]["value"].get("parentCommit") != repo.heads[branch]:
            self.fail(412, message="A commit has happened since. Please refresh and try again.")
            return
        files = dict(repo.commits[repo.heads[branch]])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.hub.blobs[value["oid"]]
        pull_request = "create_pr" in self.query
        sha = repo.commit("refs/pr/1" if pull_request else branch, files)
        self.json(
            {
                "commitUrl": f"{self.hub.url}/{name}/commit/{sha}",
                "commitOid": sha,
                "pullRequestUrl": f"{self.hub.url}/{name}/discussions/1" if pull_request else None,
                "message": lines[0]["value"]["summary"],
            }
        )

    # ------------------------------------------------------------------ what a pull uses

    def _repo(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self.fail(401 if repo is None else 404, "RepoNotFound", "Repository not found")
            return None
        return repo

    def on_info(self, name: str, revision: str | None = None) -> None:
        if (repo := self._repo(name)) is None:
            return
        if (sha := repo.resolve(revision or "main")) is None:
            self.fail(404, "RevisionNotFound", "Invalid rev id")
            return
        siblings = []
        for path, data in repo.commits[sha].items():
            told: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": "0" * 40}
            if self._is_lfs(path, data):
                oid = hashlib.sha256(data).hexdigest()
                told["lfs"] = {"sha256": oid, "size": len(data), "pointerSize": 130}
            siblings.append(told)
        self.json({"id": name, "modelId": name, "sha": sha, "private": repo.private, "tags": [], "siblings": siblings})

    def _is_lfs(self, path: str, data: bytes) -> bool:
        return len(data) >= self.hub.lfs_from and path != "README.md"

    def on_resolve(self, name: str, revision: str, path: str) -> None:
        if (repo := self._repo(name)) is None:
            return
        sha = repo.resolve(revision)
        if sha is None or path not in repo.commits[sha]:
            self.fail(404, "RevisionNotFound" if sha is None else "EntryNotFound")
            return
        data = repo.commits[sha][path]
        oid = hashlib.sha256(data).hexdigest()
        if self._is_lfs(path, data):
            self.hub.blobs[oid] = data
            self.answer(302, Location=f"{self.hub.url}/cdn/{oid}", X_Repo_Commit=sha, X_Linked_Etag=f'"{oid}"')
        else:
            self.answer(200, data, ETag=f'"{oid}"', X_Repo_Commit=sha)

    def on_cdn(self, oid: str) -> None:
        self.answer(200, self.hub.blobs[oid])

    def on_search(self) -> None:
        from huggingface_hub import ModelCard

        found = []
        for name, repo in self.hub.repos.items():
            card = ModelCard(repo.commits[repo.heads["main"]].get("README.md", b"---\n{}\n---\n").decode())
            models = card.data.get("base_model", [])
            models = models if isinstance(models, list) else [models]
            tags = [*card.data.get("tags", []), str(card.data.get("library_name")), "region:us"]
            tags += [tag for model in models for tag in (f"base_model:{model}", f"base_model:adapter:{model}")]
            wanted = self.query.get("filter", [])
            if set(wanted) <= set(tags) and self.query.get("search", [""])[0].lower() in name.lower():
                found.append({"id": name, "modelId": name, "tags": tags, "downloads": 7, "private": repo.private})
        self.json(found)


_REPO = r"([\w.-]+/[\w.-]+)"
_ROUTES = [
    ("create", "POST", r"/api/repos/create"),
    ("validate", "POST", r"/api/validate-yaml"),
    ("preupload", "POST", rf"/api/models/{_REPO}/preupload/(.+)"),
    ("commit", "POST", rf"/api/models/{_REPO}/commit/(.+)"),
    ("lfs", "POST", rf"/{_REPO}\.git/info/lfs/objects/batch"),
    ("upload", "PUT", r"/lfs/(\w+)"),
    ("info", "GET", rf"/api/models/{_REPO}(?:/revision/(.+))?"),
    ("search", "GET", r"/api/models"),
    ("resolve", "GET", rf"/{_REPO}/resolve/([^/]+)/(.+)"),
    ("cdn", "GET", r"/cdn/(\w+)"),
]
