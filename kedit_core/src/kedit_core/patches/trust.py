"""Whose patches are believed: the gate through which every patch file is read.

A policy names public keys. With one, a patch is read only when its signature file verifies with one of them, and that
is checked before anything in the patch is looked at. ``KEDIT_TRUSTED_KEYS`` sets a policy for everything run with it.

Not asked for a signature: the copies of patches in the ``.kedit`` folder of an edited model (the record there holds
their ids, and who can write into that folder can write the weights themselves).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, TypeAlias

from attrs import field, frozen

from kedit_core.errors import InputError, PatchFormatError, UntrustedPatchError
from kedit_core.files import read_bounded
from kedit_core.patches.keys import PublicKey

ENVIRONMENT = "KEDIT_TRUSTED_KEYS"
SUFFIX = ".sig"
MAX_SIGNATURE = 1 << 20  # bytes of a signature file; those of patches have about 1500

_BLOCK = 1 << 20

KeyFile: TypeAlias = str | os.PathLike[str]


def _read_keys(keys: Iterable[KeyFile | PublicKey]) -> tuple[PublicKey, ...]:
    if isinstance(keys, str | os.PathLike):
        raise InputError(f"the keys of a TrustPolicy are a sequence; write TrustPolicy(keys=({str(keys)!r},))")
    return tuple(key if isinstance(key, PublicKey) else PublicKey.read(key) for key in keys)


@frozen
class TrustPolicy:
    """A patch is believed when one of these keys signed it.

    Args:
        keys: public keys: paths of PEM files, or :class:`~kedit_core.patches.keys.PublicKey`; one at least.

    Raises InputError for a key that cannot be used, or for none.
    """

    keys: tuple[PublicKey, ...] = field(converter=_read_keys)

    def __attrs_post_init__(self) -> None:
        if not self.keys:
            raise InputError("a TrustPolicy without keys believes nobody; give at least one public key")

    def signer(self, digest: str, signature: bytes | None, source: str) -> PublicKey:
        """The key that signed a file with this SHA-256.

        Args:
            digest: of the file; 64 hexadecimal digits.
            signature: content of the signature file, or None when there is none.
            source: what the file is called in messages.

        Raises UntrustedPatchError when none did.
        """
        from kedit_core.patches.signing import signer_of

        if signature is None:
            raise UntrustedPatchError(
                f"{source} has no signature, and only signed patches are read here (--key, or {ENVIRONMENT}); get its "
                f"signature from its author: a file of the patch's name and {SUFFIX}, which belongs beside it"
            )
        return signer_of(digest, signature, self.keys, source)


@frozen
class Anyone:
    """The policy of reading every patch, whatever the environment asks for."""


ANYONE = Anyone()
Trust: TypeAlias = TrustPolicy | Anyone


def from_environment() -> TrustPolicy | None:
    """The policy of ``KEDIT_TRUSTED_KEYS``: paths of public keys, separated as in ``PATH``. None when it is not set.

    Raises InputError when it names a key that cannot be used, or is set to nothing.
    """
    text = os.environ.get(ENVIRONMENT)
    if text is None:
        return None
    paths = [part for part in text.split(os.pathsep) if part]
    if not paths:
        raise InputError(f"{ENVIRONMENT} is set and names no key; name public keys, or unset it")
    return TrustPolicy(paths)


def policy_for(keys: Sequence[KeyFile]) -> TrustPolicy | None:
    """The policy for keys that a user gave (``--key``), within what the environment allows; None when nobody asks.

    Commands and plugins that read patches from elsewhere (a registry, a list of patches) get their policy here and
    pass it to ``EditPatch.load(path, trust=policy)``.

    Raises InputError for a key that cannot be used, or that ``KEDIT_TRUSTED_KEYS`` does not have among its own.
    """
    required = from_environment()
    if not keys:
        return required
    policy = TrustPolicy(tuple(keys))
    if required is not None:
        known = {key.fingerprint for key in required.keys}
        for key in policy.keys:
            if key.fingerprint not in known:
                raise InputError(f"the key {key.name} is not one of those in {ENVIRONMENT}; use one of them")
    return policy


def vouched(trust: Trust | None, stream: BinaryIO, source: str, signature: Callable[[], bytes | None]) -> str | None:
    """Have the signature of an open file checked before it is read; its digest, or None when nobody asks for one.

    Args:
        trust: a policy, ANYONE, or None for that of the environment.
        stream: at its beginning; left there.
        signature: gives the content of the signature file.

    Raises UntrustedPatchError; PatchFormatError for a file that does not fit into the memory of this machine, which
    would have to be hashed all the same.
    """
    policy = from_environment() if trust is None else trust
    if not isinstance(policy, TrustPolicy):
        return None
    content = signature()
    if content is not None:
        _check_memory(stream, source)
    hasher = hashlib.sha256()
    while content is not None and (block := stream.read(_BLOCK)):
        hasher.update(block)
    stream.seek(0)
    policy.signer(hasher.hexdigest(), content, source)
    return hasher.hexdigest()


def _check_memory(stream: BinaryIO, source: str) -> None:
    """Refuse terabytes that take no room on a disk before they are hashed for hours."""
    from kedit_core.patches.container import check_memory

    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    try:
        check_memory(size)
    except PatchFormatError as error:
        raise PatchFormatError(f"{source} cannot be read: {error}") from error


def check_unchanged(digest: str, signed: str | None, source: str) -> None:
    """UntrustedPatchError when what was read is not what was signed: the file changed in between."""
    if signed is not None and digest != signed:
        raise UntrustedPatchError(f"{source} changed while it was read; is something else writing to it?")


def signature_path(path: KeyFile) -> Path:
    """Where the signature of a patch file is looked for: ``PATCH.sig``."""
    return Path(f"{os.fspath(path)}{SUFFIX}")


def read_signature(path: Path, signature: KeyFile | None) -> bytes | None:
    """The content of a patch's signature file; None when it has none beside it.

    Raises InputError when the file that is named (``signature``) cannot be read.
    """
    beside = signature_path(path) if signature is None else Path(signature)
    try:
        return read_bounded(beside, MAX_SIGNATURE)
    except (OSError, ValueError) as error:
        if signature is None and isinstance(error, FileNotFoundError):
            return None
        raise InputError(
            f"the signature {beside} cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from error
