"""Signatures of patch files: what is signed and checked, keys, and what other programs make of them."""

from __future__ import annotations

import json
import os
import stat
import sys
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from core.patches.patch_kit import FACT, loose_patch, random_operation

from kedit_core.cli import root
from kedit_core.errors import InputError, MissingExtraError, PatchFormatError, UntrustedPatchError
from kedit_core.patches import EditPatch
from kedit_core.patches.keys import PublicKey, new_pair
from kedit_core.patches.signing import check, sign

pytest.importorskip("model_signing")

PATCH = loose_patch(
    [random_operation("a.weight", (3, 5), "out_in", "low_rank_delta", 0, torch.float32)], {"a.weight": (3, 5)}
)
OTHER = loose_patch([], {}, requests=[FACT])


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    PATCH.save(tmp_path / "p.safetensors")
    return tmp_path / "p.safetensors"


def kedit(*words: object, **environment: str) -> tuple[int, str]:
    done = CliRunner().invoke(root.kedit, [str(word) for word in words], env=environment)
    return done.exit_code, done.output


def test_a_signed_patch_verifies_also_under_another_name(patch: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    assert sign(patch, keys[0]) == patch.with_name("p.safetensors.sig")
    found = check(patch, keys[1])
    assert found.patch.id == PATCH.id and found.key.name == str(keys[1])
    renamed = tmp_path / "elsewhere" / "q"
    renamed.parent.mkdir()
    patch.rename(renamed)
    patch.with_name("p.safetensors.sig").rename(renamed.with_name("q.sig"))
    assert check(renamed, keys[1]).patch.id == PATCH.id


def test_what_is_signed_is_the_patch_s_id_and_no_name_or_path(patch: Path, keys: tuple[Path, Path]) -> None:
    bundle = json.loads(sign(patch, keys[0]).read_text())
    statement = json.loads(b64decode(bundle["dsseEnvelope"]["payload"]))
    (resource,) = statement["predicate"]["resources"]
    assert resource == {"name": ".", "algorithm": "sha256", "digest": PATCH.id}
    assert [subject["name"] for subject in statement["subject"]] == ["patch"]
    assert "p.safetensors" not in json.dumps([bundle, statement])
    assert bundle["verificationMaterial"]["publicKey"]["hint"] == PublicKey.read(keys[1]).fingerprint


def test_the_library_s_own_program_verifies_our_signature_and_makes_ones_that_we_take(
    patch: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    from model_signing import _cli

    def program(*words: object) -> int:
        return CliRunner().invoke(_cli.main, [str(word) for word in words]).exit_code

    made, theirs = sign(patch, keys[0]), tmp_path / "theirs"
    assert program("verify", "key", patch, "--signature", made, "--public_key", keys[1]) == 0
    assert program("sign", "key", patch, "--signature", theirs, "--private_key", keys[0]) == 0
    assert check(patch, keys[1], theirs).patch.id == PATCH.id
    patch.write_bytes(OTHER.to_bytes())
    assert program("verify", "key", patch, "--signature", made, "--public_key", keys[1]) != 0


def test_a_changed_patch_a_stranger_s_key_and_no_signature_are_told_apart(
    patch: Path, keys: tuple[Path, Path], strangers: tuple[Path, Path]
) -> None:
    with pytest.raises(UntrustedPatchError, match="has no signature"):
        check(patch, keys[1])
    sign(patch, keys[0])
    with pytest.raises(UntrustedPatchError, match="not made with the key"):
        check(patch, strangers[1])
    assert check(patch, [strangers[1], keys[1]]).key.name == str(keys[1])
    OTHER.save(patch)
    with pytest.raises(UntrustedPatchError, match="of another file"):
        check(patch, [strangers[1], keys[1]])


def _payload(bundle: dict[str, Any], change: Any) -> None:
    from base64 import b64encode

    envelope = bundle["dsseEnvelope"]
    envelope["payload"] = b64encode(change(b64decode(envelope["payload"]))).decode()


FORGERIES: dict[str, Any] = {
    "another digest": lambda b: _payload(b, lambda text: text.replace(PATCH.id.encode(), OTHER.id.encode())),
    "another type": lambda b: b["dsseEnvelope"].update(payloadType="text/plain"),
    "no signature in it": lambda b: b["dsseEnvelope"].update(signatures=[]),
    "an empty signature": lambda b: b["dsseEnvelope"]["signatures"][0].update(sig=""),
    "no key named": lambda b: b["verificationMaterial"]["publicKey"].pop("hint"),
    "not even a bundle": lambda b: b.clear(),
    "a message signature": lambda b: b.pop("dsseEnvelope"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_signature_file_is_refused(forgery: str, patch: Path, keys: tuple[Path, Path]) -> None:
    signature = sign(patch, keys[0])
    bundle = json.loads(signature.read_text())
    FORGERIES[forgery](bundle)
    if forgery in ("another digest", "no key named"):  # the latter is a good signature, but of another file
        OTHER.save(patch)
    signature.write_text(json.dumps(bundle))
    with pytest.raises(UntrustedPatchError):
        check(patch, keys[1])


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff" * 100, b"null", b"{}" + b" " * (1 << 20)])
def test_a_signature_file_of_anything_is_refused(data: bytes, patch: Path, keys: tuple[Path, Path]) -> None:
    patch.with_name("p.safetensors.sig").write_bytes(data)
    with pytest.raises((UntrustedPatchError, InputError)):
        check(patch, keys[1])


def test_only_whole_patches_are_signed_and_only_signatures_replaced(patch: Path, keys: tuple[Path, Path]) -> None:
    signature = sign(patch, keys[0])
    assert sign(patch, keys[0]) == signature
    letter = patch.with_name("letter.txt")
    letter.write_text("{}")
    with pytest.raises(InputError, match="is no signature, so it is not replaced"):
        sign(patch, keys[0], letter)
    assert letter.read_text() == "{}"
    with pytest.raises(PatchFormatError):
        sign(letter, keys[0])
    assert not letter.with_name("letter.txt.sig").exists()


# ---------------------------------------------------------------------- keys


def test_new_keys_are_private_and_nothing_is_written_over(tmp_path: Path) -> None:
    private, public = new_pair(tmp_path / "keys")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    before = private.read_bytes(), public.read_bytes()
    with pytest.raises(InputError, match="is there already"):
        new_pair(tmp_path / "keys")
    private.unlink()
    with pytest.raises(InputError, match="is there already"):
        new_pair(tmp_path / "keys")
    assert public.read_bytes() == before[1] and not private.exists()


def test_keys_that_cannot_be_used_are_told_in_one_sentence(
    patch: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    plain = form.NoEncryption()
    other: dict[str, Any] = {
        "brainpool": ec.generate_private_key(ec.BrainpoolP256R1()),
        "edwards": ed25519.Ed25519PrivateKey.generate(),
    }
    for name, key in other.items():
        (tmp_path / name).write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, plain))
    (tmp_path / "text").write_text("not a key")
    (tmp_path / "large").write_bytes(b"x" * 100_000)
    os.mkfifo(tmp_path / "pipe")
    for path, told in (
        (keys[1], "holds a public key"),
        (tmp_path / "brainpool", "on the curve brainpoolP256r1"),
        (tmp_path / "edwards", "not of an elliptic curve"),
        (tmp_path / "text", "holds no private key in PEM"),
        (tmp_path / "large", "more than 65536 bytes"),
        (tmp_path / "pipe", "not an ordinary file"),
        (tmp_path / "missing", "No such file"),
    ):
        code, out = kedit("sign", patch, "--key", path)
        assert code == 2 and told in out and out.count("\n") == 1, out
    for path, told in ((keys[0], "holds a private key"), (tmp_path / "text", "holds no public key in PEM")):
        code, out = kedit("patch", "verify", patch, "--key", path)
        assert code == 2 and told in out
    assert not patch.with_name("p.safetensors.sig").exists()


def test_a_protected_key_takes_its_password_from_the_environment(patch: Path, tmp_path: Path) -> None:
    home = tmp_path / "keys"
    code, _ = kedit("sign", "--new-key", home, "--password-env", "SECRET", SECRET="open sesame")
    private, public = home / "kedit-key.pem", home / "kedit-key.pub.pem"
    assert code == 0 and b"ENCRYPTED" in private.read_bytes()
    for words, environment, told in (
        ((), {}, "protected by a password"),
        (("--password-env", "SECRET"), {"SECRET": "shut"}, "cannot be opened with that password"),
        (("--password-env", "SECRET"), {"SECRET": ""}, "no such environment variable, or it is empty"),
    ):
        code, out = kedit("sign", patch, "--key", private, *words, **environment)
        assert code == 2 and told in out and "sesame" not in out
    assert kedit("sign", patch, "--key", private, "--password-env", "SECRET", SECRET="open sesame")[0] == 0
    assert check(patch, public).patch.id == PATCH.id
    plain, _ = new_pair(tmp_path / "plain")
    code, out = kedit("sign", patch, "--key", plain, "--password-env", "SECRET", SECRET="x")
    assert code == 2 and "not protected by a password" in out
    for password, told in (("x" * 1024, "has 1024 bytes, and at most 1023"), ("\udcff", "is not text in UTF-8")):
        with pytest.raises(InputError, match=told):
            new_pair(tmp_path / "none", password)
    assert not (tmp_path / "none").exists()


def test_without_the_library_the_message_says_what_to_install(
    patch: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sign(patch, keys[0])
    for name in [name for name in sys.modules if name.split(".")[0] in ("model_signing", "cryptography")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("model_signing", "cryptography"):
        monkeypatch.setitem(sys.modules, name, None)
    for work in (lambda: sign(patch, keys[0]), lambda: check(patch, keys[1]), lambda: new_pair(patch.parent / "k")):
        with pytest.raises(MissingExtraError, match=r"pip install 'kedit-core\[sign\]'"):
            work()
    assert EditPatch.load(patch).id == PATCH.id  # nothing else needs it


# ---------------------------------------------------------------------- the commands


def test_sign_and_verify_on_the_command_line(patch: Path, tmp_path: Path, strangers: tuple[Path, Path]) -> None:
    code, out = kedit("sign", "--new-key", tmp_path / "keys", "--json")
    made = json.loads(out)
    assert code == 0 and made["fingerprint"] == PublicKey.read(made["public"]).fingerprint
    assert kedit("patch", "verify", patch, "--key", made["public"])[0] == 1
    code, out = kedit("sign", patch, "--key", made["private"], "--json")
    assert code == 0 and json.loads(out) == {"patch": str(patch), "signature": f"{patch}.sig"}
    code, out = kedit("patch", "verify", patch, "--key", strangers[1], "--key", made["public"])
    assert code == 0 and f"signed with {made['public']}" in out
    code, out = kedit("patch", "verify", patch, "--key", strangers[1], "--json")
    told = json.loads(out)
    assert code == 1 and told["signed_with"] is None and told["whole"] is None and not told["passed"]
    assert kedit("patch", "verify", patch, "--signature", f"{patch}.sig")[0] == 2
    for words in (("sign", patch), ("sign", "--key", made["private"]), ("sign", patch, "--new-key", tmp_path / "more")):
        assert kedit(*words)[0] == 2
    assert kedit("sign", patch, "--key", made["private"], "-o", patch)[0] == 2
    assert EditPatch.load(patch).id == PATCH.id
