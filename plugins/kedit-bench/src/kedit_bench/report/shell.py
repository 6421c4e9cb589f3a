"""The page around the content: styles and script inside the file, and nothing that a browser would fetch.

A content security policy in the page itself lets this style and this script run and nothing else, so that even a fault
in escaping could start nothing and send nothing.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path

from kedit_bench.report.markup import Markup, element, join
from kedit_core.files import replacing

_ICON = (
    "data:image/svg+xml;base64,"
    + base64.b64encode(
        b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="4" height="9" x="1" y="6" rx="1" '
        b'fill="#2563b8"/><rect width="4" height="14" x="6" y="1" rx="1" fill="#0f7b52"/><rect width="4" height="6" '
        b'x="11" y="9" rx="1" fill="#b4540a"/></svg>'
    ).decode()
)


def page(title: str, *body: object) -> str:
    """A whole HTML document."""
    style, script = _resource("report.css"), _resource("report.js")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src '{_hash(style)}'",
            f"script-src '{_hash(script)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("link", rel="icon", href=_ICON),
        element("style", Markup(style)),
    )
    content = element("body", body, element("script", Markup(script)))
    return join(Markup("<!DOCTYPE html>\n"), element("html", head, content, lang="en")) + "\n"


def write_page(path: Path, text: str) -> None:
    """Write a page in one step. Raises OSError."""
    with replacing(path) as stream:
        stream.write(text.encode())


def _resource(name: str) -> str:
    return files("kedit_bench.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
