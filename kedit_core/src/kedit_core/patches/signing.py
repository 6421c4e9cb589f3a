"""Signatures of patch files, in the format of OpenSSF model signing (a Sigstore bundle beside the file).

What is signed is the SHA-256 of the file, which is the patch's id; the file's name is not part of it, so a renamed
patch still has its signature. The library's own program checks them, too: ``model_signing verify key PATCH --signature
PATCH.sig --public_key PUBLIC.pem``.

The library hashes a path that it is given. Here it is handed the digest of what is read through our own open file
instead: what was checked is what is then parsed, whatever happens to the path meanwhile.

Source: OpenSSF model signing 1.0, https://github.com/sigstore/model-transparency
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from attrs import frozen

from kedit_core.errors import InputError, KeditError, UntrustedPatchError
from kedit_core.extras import needed
from kedit_core.files import read_object, replacing
from kedit_core.patches.keys import EXTRA, PublicKey, read_private
from kedit_core.patches.trust import ANYONE, MAX_SIGNATURE, KeyFile, TrustPolicy, read_signature, signature_path

if TYPE_CHECKING:
    from kedit_core.patches.format import EditPatch

_NAME = "patch"  # what a signature calls the file; for people only, and the same for every patch
_BUNDLE = "application/vnd.dev.sigstore.bundle"
_ITEM = PurePosixPath()  # the library's name for a model that is one file


def sign(
    path: str | os.PathLike[str],
    key: str | os.PathLike[str],
    signature: str | os.PathLike[str] | None = None,
    *,
    password: str | None = None,
) -> Path:
    """Sign a patch file; the path of the signature file, which replaces an earlier one.

    Args:
        key: private key in PEM (P-256, P-384 or P-521).
        signature: where the signature goes; by default ``path`` with ``.sig`` added.
        password: of the key.

    Raises:
        InputError: the key cannot be used, or something that is no signature is in the way.
        PatchFormatError: the file is no whole patch; only those are signed.
        MissingExtraError: the library is not installed.
    """
    from kedit_core.patches.format import EditPatch

    read_private(key, password)  # the library would tell what is wrong with a key in its own words
    out = signature_path(path) if signature is None else Path(signature)
    check_signature_output(out)
    digest = EditPatch.load(path, trust=ANYONE).id
    library = needed("model_signing.signing", "Signing", EXTRA)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "signature"
        signer = library.Config().use_elliptic_key_signer(
            private_key=Path(key),
            password=None if password is None else password.encode(),
        )
        signer.set_hashing_config(_hashed(digest)).sign(Path(_NAME), made)
        data = made.read_bytes()
    try:
        with replacing(out) as stream:
            stream.write(data)
    except OSError as error:
        raise KeditError(f"the signature could not be written to {out}: {error.strerror or error}") from error
    return out


@frozen
class Signed:
    """A patch that was read after its signature had been found good, and the key that made the signature."""

    patch: EditPatch
    key: PublicKey


def check(
    path: str | os.PathLike[str],
    key: KeyFile | PublicKey | Sequence[KeyFile | PublicKey],
    signature: str | os.PathLike[str] | None = None,
) -> Signed:
    """Check the signature of a patch file, then read it.

    Args:
        key: one public key (the path of a PEM file, or a PublicKey), or several of which one is enough.
        signature: the signature file; by default ``path`` with ``.sig`` added.

    Raises:
        UntrustedPatchError: the signature is missing, by another key, or of another file.
        PatchFormatError: it is no whole patch.
        InputError: there is no such file, or a key cannot be used.
        MissingExtraError: the library is not installed.
    """
    from kedit_core.patches.format import EditPatch

    single = isinstance(key, str | os.PathLike | PublicKey)
    policy = TrustPolicy((key,) if single else tuple(key))  # type: ignore[arg-type]
    beside = read_signature(Path(path), signature)
    patch = EditPatch.load(path, trust=policy, signature=signature)
    return Signed(patch, policy.signer(patch.id, beside, Path(path).name))


def signer_of(digest: str, signature: bytes, keys: Sequence[PublicKey], source: str) -> PublicKey:
    """Which of the keys signed a file with this SHA-256.

    Args:
        signature: content of the signature file.
        source: what the file is called in messages.

    Raises UntrustedPatchError when none did.
    """
    library = needed("model_signing.verifying", "Checking signatures", EXTRA)
    if len(signature) > MAX_SIGNATURE:
        raise UntrustedPatchError(f"the signature of {source} is larger than {MAX_SIGNATURE} bytes; it is none")
    of_another_file = False
    with tempfile.TemporaryDirectory() as folder:
        bundle, public = Path(folder) / "signature", Path(folder) / "public.pem"
        bundle.write_bytes(signature)
        for key in keys:
            public.write_bytes(key.pem)
            hashed = _hashed(digest)
            try:
                # the library prints a remark on old signatures; stdout is for results
                with contextlib.redirect_stdout(sys.stderr):
                    checker = library.Config().use_elliptic_key_verifier(public_key=public)
                    checker.set_hashing_config(hashed).verify(Path(_NAME), bundle)
            except Exception:  # whatever its parsers raise on what somebody sent
                of_another_file = of_another_file or hashed.reached
                continue
            return key
    if of_another_file:
        raise UntrustedPatchError(
            f"the signature of {source} is of another file; the patch was changed after it was signed, or the two do "
            "not belong together, so get both again"
        )
    names = ", ".join(key.name for key in keys)
    raise UntrustedPatchError(
        f"the signature of {source} was not made with {'the key' if len(keys) == 1 else 'any of the keys'} {names}; "
        "get the patch, or the key, from somebody you trust"
    )


def check_signature_output(out: Path) -> None:
    """InputError when a file that is no signature would be replaced by one."""
    if out.is_dir():
        raise InputError(f"{out} is a folder; give the name of the signature's file")
    if out.is_file() and out.stat().st_size and not is_signature(out):
        raise InputError(f"{out} is there already and is no signature, so it is not replaced; give another name")


def is_signature(path: Path) -> bool:
    """Whether a file is a Sigstore bundle."""
    try:
        content = read_object(path, MAX_SIGNATURE)
    except (OSError, ValueError):
        return False
    return str(content.get("mediaType", "")).startswith(_BUNDLE)


def _hashed(digest: str) -> Any:
    """The library's hashing configuration for a file whose digest is known: it reads nothing."""
    hashing = needed("model_signing.hashing", "Signatures of patches", EXTRA)
    manifests = needed("model_signing.manifest", "Signatures of patches", EXTRA)
    kind = manifests.SerializationType.from_args(
        {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []}
    )
    item = kind.new_item(str(_ITEM), hashing.hashing.Digest("sha256", bytes.fromhex(digest)))

    class Known(hashing.Config):  # type: ignore[misc, name-defined]
        reached = False

        def hash(self, model_path: Any, *, files_to_hash: Any = None) -> Any:
            """Called by the library once the signature itself has been found good."""
            self.reached = True
            return manifests.Manifest(_NAME, [item], kind)

    return Known()
