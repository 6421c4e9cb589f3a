"""Downloads that are bounded, hashed while they run, and follow no redirect to an unsafe address.

The client is huggingface_hub's own, so certificates, proxies and HF_HUB_OFFLINE are as they are for models.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from typing import BinaryIO
from urllib.parse import urljoin

from huggingface_hub import constants, get_session

from kedit_core.cli.common import human_bytes
from kedit_core.editing.progress import Progress, silent
from kedit_core.errors import InputError, KeditError
from kedit_hub.faults import status_fault, told
from kedit_hub.places import check_url

MAX_PATCH = 4 << 30  # bytes
MAX_SIGNATURE = 1 << 20

_REDIRECTS = 10
_BLOCK = 1 << 20
_MOVED = (301, 302, 303, 307, 308)


def download(
    url: str,
    sink: BinaryIO,
    *,
    what: str,
    limit: int,
    expected: int | None = None,
    headers: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> str:
    """Write what is at ``url`` to ``sink``; the SHA-256 of its bytes.

    Args:
        url: https, or http on this machine; redirects may only lead to such.
        what: names it in messages.
        limit: bytes; more is refused, when it is announced and again when it comes.
        expected: bytes that it must have, where that is known.
        headers: sent to the first address's own host only.

    Raises KeditError; ``sink`` then holds what came so far.
    """
    check_size(expected, limit, what)
    origin = _origin(url)
    with told(what):
        for _ in range(_REDIRECTS):
            sent = {**(headers or {})} if _origin(url) == origin else {}
            with get_session().stream(
                "GET",
                url,
                headers={**sent, "Accept-Encoding": "identity"},
                follow_redirects=False,
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            ) as answer:
                if answer.status_code in _MOVED:
                    url = _redirected(url, answer.headers.get("Location", ""), what)
                    continue
                if answer.status_code != 200:
                    raise status_fault(answer.status_code, answer.headers.get("X-Error-Code"), what)
                if answer.headers.get("Content-Encoding", "identity") != "identity":
                    raise KeditError(
                        f"{what} comes compressed though it was asked for plain; the server must not do so"
                    )
                announced = answer.headers.get("Content-Length", "")
                check_size(int(announced) if announced.isdecimal() else None, limit, what)
                return _receive(answer.iter_raw(_BLOCK), sink, what, limit, expected, progress)
        raise KeditError(f"{what} is redirected more than {_REDIRECTS} times; check the address")


def download_bytes(
    url: str, *, what: str, limit: int, expected: int | None = None, headers: Mapping[str, str] | None = None
) -> bytes:
    """As :func:`download`, for what is small."""
    sink = io.BytesIO()
    download(url, sink, what=what, limit=limit, expected=expected, headers=headers)
    return sink.getvalue()


def check_size(size: int | None, limit: int, what: str) -> None:
    """KeditError for more bytes than are taken."""
    if size is not None and size > limit:
        raise KeditError(
            f"{what} is larger than the {human_bytes(limit)} that are taken; raise the limit (--max-size) if you know "
            "that it is right"
        )


def _receive(
    blocks: Iterator[bytes], sink: BinaryIO, what: str, limit: int, expected: int | None, progress: Progress
) -> str:
    hasher, count = hashlib.sha256(), 0
    with progress("downloading", total=expected) as step:
        for block in blocks:
            count += len(block)
            check_size(count, limit, what)
            hasher.update(block)
            sink.write(block)
            step.advance(len(block))
    if expected is not None and count != expected:
        raise KeditError(f"{what} has {count} bytes where {expected} were announced; it was cut short or changed")
    return hasher.hexdigest()


def _redirected(url: str, location: str, what: str) -> str:
    target = urljoin(url, location)
    try:
        parts = check_url(target)
    except InputError as error:
        raise KeditError(f"{what} is redirected to an address that is not safe: {error}") from None
    if parts.scheme != "https" and url.startswith("https:"):
        raise KeditError(f"{what} is redirected from https to {parts.scheme}; it is not followed")
    return target


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = check_url(url)
    return parts.scheme, parts.hostname, parts.port
