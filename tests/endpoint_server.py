"""A model behind an OpenAI-compatible endpoint on this machine, which can be told to fail."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kedit_core.evaluation import Answers

KEY = "sk-of-the-test"


class ModelServer:
    """Answers ``/v1/completions`` and ``/v1/chat/completions`` with a model's own continuations.

    Attributes:
        url: of the endpoint while it runs.
        pace: seconds that an answer takes at least.
        faults: what the next requests get instead, in order: ``500``, ``429`` (with Retry-After), ``401``, ``hang``,
            ``cut`` (the connection is closed), or a body that is sent as it is. What follows a number and a space is
            said before the key.
        bodies: what was asked, as parsed; ``headers`` likewise, by lower-case names.
        most: most requests that were under way at once.
    """

    def __init__(self, answers: Answers) -> None:
        self.answers, self.url, self.pace = answers, "", 0.0
        self.faults: list[str] = []
        self.bodies: list[Mapping[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.most = 0
        self.released = threading.Event()
        self._now = 0
        self._lock, self._model = threading.Lock(), threading.Lock()

    def write(self, text: str, tokens: int) -> str:
        """What the model writes after a text."""
        with self._model:
            return self.answers.raw_generate([text], tokens)[0]

    def begin(self, headers: Mapping[str, str], body: Mapping[str, Any]) -> str | None:
        """Note a request; the fault it gets, if any."""
        with self._lock:
            self.bodies.append(body)
            self.headers.append({name.lower(): value for name, value in headers.items()})
            self._now += 1
            self.most = max(self.most, self._now)
            return self.faults.pop(0) if self.faults else None

    def end(self) -> None:
        """A request is over."""
        with self._lock:
            self._now -= 1

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve on a free port of this machine."""
        handler = type("Handler", (_Handler,), {"state": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            self.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
            yield
        finally:
            self.released.set()
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: ModelServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.state.begin(self.headers, body)
        try:
            if fault is not None:
                self._fail(fault)
            elif self.path not in ("/v1/completions", "/v1/chat/completions"):
                self._send(404, json.dumps({"error": {"message": f"no path {self.path}"}}))
            else:
                time.sleep(self.state.pace)
                self._send(200, json.dumps(self._answer(body)))
        finally:
            self.state.end()

    def _answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        chat = self.path.endswith("chat/completions")
        text = _said(body["messages"]) if chat else body["prompt"]
        written = self.state.write(text, body["max_tokens"])
        for stop in body.get("stop", []):
            written = written.partition(stop)[0]
        said = {"message": {"role": "assistant", "content": written}} if chat else {"text": written}
        return {
            "id": "1",
            "object": "chat.completion" if chat else "text_completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "length", **said}],
        }

    def _fail(self, fault: str) -> None:
        if fault == "hang":
            self.state.released.wait(20)
        elif fault == "cut":
            self.close_connection = True
        elif fault[:3].isdigit():
            code, _, more = fault.partition(" ")
            told = f"made to fail with {code}, {more}key {KEY}"
            message = json.dumps({"detail": told} if code == "400" else {"error": {"message": told}})
            self._send(int(code), message, {"Retry-After": "0.05"} if code == "429" else {"retry-after-ms": "1"})
        else:
            self._send(200, fault)

    def _send(self, status: int, body: str, headers: Mapping[str, str] | None = None) -> None:
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if body.startswith("<") else "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


def _said(messages: Sequence[Mapping[str, str]]) -> str:
    """The messages as the text that the model continues: a chat template of the barest kind."""
    return "".join(f"{each['content']}\n" if each["role"] == "system" else each["content"] for each in messages)
