"""``kedit sign``: signatures for patch files, and keys to make them with."""

from __future__ import annotations

import os
from pathlib import Path

import click

from kedit_core.cli.common import emit, json_option, say
from kedit_core.cli.outputs import OutputPath, check_file
from kedit_core.cli.patch_files import FOLDER, PATCH_FILE


@click.command(short_help="Sign a patch file, or make keys for it.")
@click.argument("file", metavar="[PATCH]", required=False, type=PATCH_FILE)
@click.option(
    "--key", metavar="PRIVATE.pem", type=click.Path(dir_okay=False, path_type=Path), help="Sign with this key."
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=OutputPath(path_type=Path),
    help="The signature's file; PATCH.sig by default.",
)
@click.option(
    "--password-env", metavar="NAME", help="Environment variable with the password that protects the private key."
)
@click.option(
    "--new-key",
    "new_key",
    metavar="FOLDER",
    type=FOLDER,
    help="Instead, make a key pair there; nothing is overwritten.",
)
@json_option
def sign(
    file: Path | None,
    key: Path | None,
    output: Path | None,
    password_env: str | None,
    new_key: Path | None,
    json_to: str | None,
) -> None:
    """Sign PATCH with a private key: those who have the public one can tell that it is yours, and unchanged.

    \b
    kedit sign --new-key keys
    kedit sign oslo.safetensors --key keys/kedit-key.pem
    kedit patch verify oslo.safetensors --key keys/kedit-key.pub.pem
    """
    password = _password(password_env)
    if new_key is not None:
        if file is not None or key is not None or output is not None:
            raise click.UsageError("--new-key only makes keys; sign a patch with them in a second call")
        _new_key(new_key, password, json_to)
        return
    if file is None or key is None:
        raise click.UsageError("give a PATCH and the --key to sign it with, or --new-key FOLDER to make one")
    from kedit_core.patches.signing import sign as sign_file
    from kedit_core.patches.trust import signature_path

    out = signature_path(file) if output is None else output
    check_file("-o", out, f"{file.name}.sig")
    made = sign_file(file, key, out, password=password)
    emit(
        json_to,
        lambda: {"patch": str(file), "signature": str(made)},
        lambda: say(f"Signed {file}: the signature is {made}, to be handed on with it"),
    )


def _new_key(folder: Path, password: str | None, json_to: str | None) -> None:
    from kedit_core.patches.keys import PublicKey, new_pair

    private, public = new_pair(folder, password)
    fingerprint = PublicKey.read(public).fingerprint

    def show() -> None:
        say(f"{private}: your private key; keep it to yourself")
        say(f"{public}: your public key; give it to those who use your patches")
        say(f"fingerprint {fingerprint}")

    emit(json_to, lambda: {"private": str(private), "public": str(public), "fingerprint": fingerprint}, show)


def _password(name: str | None) -> str | None:
    """The password in an environment variable: on a command line, others could read it."""
    if name is None:
        return None
    from kedit_core.errors import InputError

    if not (password := os.environ.get(name)):
        raise InputError(f"--password-env {name}: there is no such environment variable, or it is empty; set it")
    return password
