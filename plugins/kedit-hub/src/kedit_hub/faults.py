"""What goes wrong between machines, as one sentence each."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from kedit_core.errors import KeditError, UnknownNameError

_LONGEST = 200  # characters of what a server says
_OFFLINE = "HF_HUB_OFFLINE is set, so nothing is read from or sent to the network; unset it"


class ConflictError(KeditError):
    """Somebody else changed the repository at the same time; trying again may help."""


def status_fault(status: int, code: str | None, what: str, said: str | None = None) -> KeditError:
    """The error for an HTTP status.

    Args:
        code: the Hub's header ``X-Error-Code``.
        what: what was asked for, as a noun: ``owner/name on https://huggingface.co``.
        said: the server's own words.
    """
    words = f" ({printable(said)})" if said else ""
    if code == "RevisionNotFound":
        return UnknownNameError(f"{what}: there is no such branch, tag or commit; check the revision")
    if code == "EntryNotFound":
        return KeditError(f"{what} is not there any more; try again")
    if code == "GatedRepo":
        return KeditError(f"{what} is only for those whom its owner lets in; ask for access on its page, then log in")
    if status == 401 or code == "RepoNotFound":
        return UnknownNameError(
            f"{what}: there is no such repository, or it is not open to you; check the name, or log in with "
            f"`hf auth login` or HF_TOKEN{words}"
        )
    if status == 404:
        return UnknownNameError(f"{what} does not exist; check the name")
    if status == 403:
        return KeditError(f"{what}: access is refused; use a token that has the right to do this{words}")
    if status in (409, 412):
        return ConflictError(f"{what} was changed by somebody else at the same time; try again{words}")
    if status == 429:
        return KeditError(f"{what}: the server takes no more requests for now; wait some minutes and try again")
    if status >= 500:
        return KeditError(f"{what}: the server failed with status {status}; try again later")
    return KeditError(f"{what}: the server answered with status {status}{words}; check the name and the rights")


@contextmanager
def told(what: str) -> Iterator[None]:
    """A block that talks to a server; whatever goes wrong leaves it as a KeditError about ``what``.

    What a server has huggingface_hub say (``X-HF-Warning``) is made :func:`printable`.
    """
    try:
        with _printable_remarks():
            yield
    except KeditError:
        raise
    except Exception as error:  # the hub client has many kinds of errors; the user needs one sentence
        raise fault_of(error, what) from error


@contextmanager
def _printable_remarks() -> Iterator[None]:
    handlers = tuple(logging.getLogger("huggingface_hub").handlers)
    remarks = _Printable()
    for handler in handlers:
        handler.addFilter(remarks)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(remarks)


class _Printable(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage()), ()
        return True


def fault_of(error: BaseException, what: str) -> KeditError:
    """The error that a library raised, as one of ours."""
    chain = list(_causes(error))
    for each in chain:
        if isinstance(each, KeditError):
            return each
        if isinstance(each, HfHubHTTPError) and each.response is not None:
            headers = each.response.headers
            return status_fault(each.response.status_code, headers.get("X-Error-Code"), what, each.server_message)
        if isinstance(each, OfflineModeIsEnabled):
            return KeditError(f"{what}: {_OFFLINE}")
        if isinstance(each, LocalTokenNotFoundError):
            return KeditError(f"{what}: no token was found; log in with `hf auth login`, or set HF_TOKEN")
        if isinstance(each, httpx2.TimeoutException):
            return KeditError(f"{what}: the server did not answer in time; check the network, or try again later")
        if isinstance(each, httpx2.RemoteProtocolError | httpx2.ReadError):
            return KeditError(f"{what}: the connection broke off; try again")
        if isinstance(each, httpx2.TransportError):
            return KeditError(f"{what} cannot be reached ({printable(str(each))}); check the address and the network")
    return KeditError(f"{what}: it failed ({type(error).__name__}: {printable(str(error))}); try again")


def offline() -> bool:
    """Whether the user has told huggingface_hub to keep off the network (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return constants.is_offline_mode()


def printable(text: str, longest: int = _LONGEST) -> str:
    """Text from elsewhere for a terminal: the first lines as one, nothing that moves the cursor, not too long."""
    shown = " ".join(text[: 4 * longest].split())
    shown = "".join(sign if sign.isprintable() else "?" for sign in shown)
    return shown if len(shown) <= longest else shown[: longest - 3] + "..."


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__
