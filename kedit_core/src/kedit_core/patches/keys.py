"""Key files for signatures: elliptic-curve keys in PEM, as OpenSSF model signing uses them.

The libraries are imported where they are used: ``pip install 'kedit-core[sign]'``.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from attrs import field, frozen

from kedit_core.errors import InputError
from kedit_core.extras import needed
from kedit_core.files import read_bounded

EXTRA = "kedit-core[sign]"
CURVES = ("secp256r1", "secp384r1", "secp521r1")
PRIVATE, PUBLIC = "kedit-key.pem", "kedit-key.pub.pem"

_LONGEST_PASSWORD = 1023  # bytes, of OpenSSL
_LIMIT = 64 << 10  # bytes of a key file
_MAKE = "make a pair with kedit sign --new-key FOLDER"


@frozen
class PublicKey:
    """A public key whose signatures are believed.

    Attributes:
        name: what users call it: the path of its file.
        pem: the key, as a PEM block.
        fingerprint: SHA-256 of ``pem``, in hexadecimal; signature files name their key by it.
    """

    name: str
    pem: bytes = field(repr=False)
    fingerprint: str = field(init=False)

    @fingerprint.default
    def _of_pem(self) -> str:
        return hashlib.sha256(self.pem).hexdigest()

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> PublicKey:
        """A key file.

        Raises InputError when it is not there, holds no public key, or one on another curve.
        """
        serialization = _serialization()
        text = _read(path)
        if b"PRIVATE KEY" in text:
            raise InputError(f"{path} holds a private key, which signs and is shown to nobody; give the public one")
        try:
            key = serialization.load_pem_public_key(text)
        except Exception as error:  # whatever its parsers raise
            raise InputError(f"{path} holds no public key in PEM; {_MAKE}") from error
        _check_curve(key, path)
        return cls(str(path), public_pem(key))


def read_private(path: str | os.PathLike[str], password: str | None) -> Any:
    """The private key in a file, as ``cryptography`` has it.

    Raises InputError when it is not there, holds no private key, one on another curve, or another password's.
    """
    serialization = _serialization()
    text = _read(path)
    if b"PUBLIC KEY" in text:
        raise InputError(f"{path} holds a public key, which only checks signatures; give the private one")
    try:
        key = serialization.load_pem_private_key(text, None if password is None else password.encode())
    except TypeError as error:  # a password too few or too many
        protected = password is None
        raise InputError(
            f"{path} is protected by a password; name the environment variable that holds it with --password-env"
            if protected
            else f"{path} is not protected by a password; leave --password-env out"
        ) from error
    except Exception as error:  # whatever its parsers raise
        if b"PRIVATE KEY" in text and password is not None:
            raise InputError(f"{path} cannot be opened with that password; check it") from error
        raise InputError(f"{path} holds no private key in PEM; {_MAKE}") from error
    _check_curve(key, path)
    return key


def new_pair(folder: str | os.PathLike[str], password: str | None = None) -> tuple[Path, Path]:
    """Make a key pair on P-256: ``kedit-key.pem`` (mode 0600) and ``kedit-key.pub.pem`` in ``folder``, which is made.

    Args:
        password: protects the private key.

    Returns the paths of the private and the public key. Raises InputError when one is there already (nothing is ever
    written over) or cannot be written, or for a password that no key can have.
    """
    serialization = _serialization()
    curves = needed("cryptography.hazmat.primitives.asymmetric.ec", "Making keys", EXTRA)
    home = Path(folder)
    private, public = home / PRIVATE, home / PUBLIC
    for path in (private, public):
        if os.path.lexists(path):
            raise InputError(f"{path} is there already, and keys are never written over; give another folder")
    key = curves.generate_private_key(curves.SECP256R1())
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(_encoded(password)),
    )
    try:
        home.mkdir(parents=True, exist_ok=True)
        _write_new(public, public_pem(key.public_key()), 0o644)
        try:
            _write_new(private, secret, 0o600)
        except OSError:
            public.unlink()
            raise
    except OSError as error:
        raise InputError(f"no keys could be written to {home} ({error.strerror or error}); give another") from error
    return private, public


def _encoded(password: str) -> bytes:
    """A password as bytes; InputError, which does not repeat it, for one that no key can have."""
    try:
        data = password.encode()
    except UnicodeEncodeError:
        raise InputError("the password is not text in UTF-8; choose another") from None
    if len(data) > _LONGEST_PASSWORD:
        raise InputError(f"the password has {len(data)} bytes, and at most {_LONGEST_PASSWORD} are used; shorten it")
    return data


def public_pem(key: Any) -> bytes:
    """A public key of ``cryptography`` as a PEM block."""
    serialization = _serialization()
    text: bytes = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return text


def _serialization() -> Any:
    return needed("cryptography.hazmat.primitives.serialization", "Signatures of patches", EXTRA)


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return read_bounded(path, _LIMIT)
    except (OSError, ValueError) as error:
        raise InputError(f"the key {path} cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _check_curve(key: Any, path: str | os.PathLike[str]) -> None:
    curve = getattr(getattr(key, "curve", None), "name", None)
    if curve not in CURVES:
        kind = f"on the curve {curve}" if curve else "that is not of an elliptic curve"
        raise InputError(f"{path} holds a key {kind}; model signing knows {', '.join(CURVES)}, so {_MAKE}")


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
