"""A repository on the Hub as a place of patches: which files it has at one commit, and their bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, BinaryIO

from attrs import frozen
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from kedit_core.editing.progress import Progress, silent
from kedit_core.errors import KeditError
from kedit_hub.faults import told
from kedit_hub.offers import Offer, offers_among
from kedit_hub.places import Repository, check_url
from kedit_hub.transfer import download, download_bytes

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_COMMIT = re.compile(r"[0-9a-f]{7,64}")

Token = str | bool | None


@frozen(kw_only=True)
class RemoteFile:
    """A file of a repository: its size and SHA-256 as the Hub tells them (None where it does not)."""

    name: str
    size: int | None
    sha256: str | None


@frozen(kw_only=True)
class Snapshot:
    """A repository at one commit.

    Attributes:
        place: owner/name, and the revision that was asked for.
        commit: that it stood for.
        private: whether only its owners see it.
        files: all files, by name.
        endpoint: address of the Hub.
        token: as huggingface_hub takes it; None for the one the user has logged in with.
    """

    place: Repository
    commit: str
    private: bool
    files: Mapping[str, RemoteFile]
    endpoint: str
    token: Token

    @classmethod
    def of(cls, place: Repository, *, token: Token = None, endpoint: str | None = None) -> Snapshot:
        """The repository as it is now; KeditError when it cannot be had."""
        address = hub_address(endpoint)
        what = name_of(place, address)
        with told(what):
            info = HfApi(endpoint=address, token=token).model_info(
                place.name, revision=place.revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            )
            if not _COMMIT.fullmatch(str(info.sha)):
                raise KeditError(f"{what}: the server does not tell which commit that is; is it a Hub?")
            return cls(
                place=place,
                commit=str(info.sha),
                private=bool(info.private),
                files=_files(info),
                endpoint=address,
                token=token,
            )

    def offers(self) -> tuple[Offer, ...]:
        """The safetensors files; whether they are patches, their content tells."""
        return offers_among({name: (file.size, file.sha256) for name, file in self.files.items()})

    def fetch(
        self, file: str, sink: BinaryIO, *, limit: int, expected: int | None = None, progress: Progress = silent
    ) -> str:
        """Write a file to ``sink``; its SHA-256. KeditError when it cannot be had whole or has over ``limit`` bytes."""
        return download(
            self._url(file),
            sink,
            what=self._what(file),
            limit=limit,
            expected=expected,
            headers=self._headers(),
            progress=progress,
        )

    def read(self, file: str, *, limit: int) -> bytes:
        """A small file; raises as :meth:`fetch`."""
        size = self.files[file].size if file in self.files else None
        return download_bytes(
            self._url(file), what=self._what(file), limit=limit, expected=size, headers=self._headers()
        )

    def _url(self, file: str) -> str:
        return hf_hub_url(self.place.name, file, revision=self.commit, endpoint=self.endpoint)

    def _what(self, file: str) -> str:
        return f"{file} of {self.place}"

    def _headers(self) -> Mapping[str, str]:
        return build_hf_headers(token=self.token)


def hub_address(endpoint: str | None) -> str:
    """The Hub's address: the one given, HF_ENDPOINT, or the public one.

    Raises InputError for an address that is neither https nor of this machine: a token would go over it.
    """
    address = (endpoint or constants.ENDPOINT).rstrip("/")
    check_url(address)
    return address


def name_of(place: Repository, address: str) -> str:
    """How messages name a repository."""
    return f"{place}{'' if place.revision is None else f'@{place.revision}'} on {address}"


def _files(info: ModelInfo) -> dict[str, RemoteFile]:
    found = {}
    for each in info.siblings or ():
        if not each.rfilename.isprintable():  # such a name could look like a line of ours where it is shown
            continue
        sha256 = None if each.lfs is None else each.lfs.sha256
        found[each.rfilename] = RemoteFile(name=each.rfilename, size=each.size, sha256=sha256)
    return found
