"""``kedit pull``: get a patch that somebody published, verified by its id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kedit_core.cli.common import emit, human_bytes, json_option, note, progress, say
from kedit_core.cli.model_options import keys_option
from kedit_core.cli.outputs import OutputPath
from kedit_core.cli.patch_files import check_patch_output, id_option

if TYPE_CHECKING:
    from kedit_hub.pulled import Pulled

_GIB = 1 << 30


@click.command(short_help="Get a patch from the Hugging Face Hub, a folder or a web server.")
@click.argument("source")
@click.option("-o", "--output", type=OutputPath(path_type=Path), help="File to write (ID.safetensors, 12 digits).")
@id_option
@click.option("--revision", help="Branch, tag or commit of a repository.")
@click.option(
    "--max-size", type=click.FloatRange(min=0, min_open=True), default=4.0, help="Refuse more GiB than this (4)."
)
@keys_option
@click.option("--offline", is_flag=True, help="Ask nobody; only what was pulled before.")
@json_option
def pull(
    source: str,
    output: Path | None,
    wanted: str | None,
    revision: str | None,
    max_size: float,
    keys: tuple[Path, ...],
    offline: bool,
    json_to: str | None,
) -> None:
    """Get the patch at SOURCE and check that its bytes have its id; a signature beside it comes too.

    SOURCE is owner/name or owner/name@REVISION on the Hugging Face Hub, a folder written ./FOLDER, or the https://
    or file:// address of an index; with #ID behind it, exactly that patch. Nothing in what is pulled is ever run.

    \b
    kedit pull owner/oslo-fact -o oslo.safetensors
    kedit pull ./shelf --id f41405529ac0
    """
    from kedit_core.patches.trust import policy_for
    from kedit_hub.pulling import pull as get

    trust = policy_for(keys)
    if output is not None and not output.is_dir():
        check_patch_output(output)
    pulled = get(
        source,
        id=wanted,
        revision=revision,
        local_files_only=offline,
        max_bytes=int(max_size * _GIB),
        trust=trust,
        progress=progress,
    )
    target = _target(output, pulled)
    check_patch_output(target)
    signature = pulled.save(target)
    emit(json_to, lambda: _data(pulled, target, signature), lambda: _show(pulled, target, signature))
    if wanted is None and "#" not in source:
        note(
            f"note: no id was asked for, so this is whatever {pulled.source} gives; pin it: kedit pull {pulled.pinned}"
        )


def _target(output: Path | None, pulled: Pulled) -> Path:
    name = f"{pulled.id[:12]}.safetensors"
    if output is None:
        return Path(name)
    return output / name if output.is_dir() else output


def _data(pulled: Pulled, target: Path, signature: Path | None) -> dict[str, Any]:
    return {
        "patch": pulled.id,
        "output": str(target),
        "signature": None if signature is None else str(signature),
        "source": str(pulled.source),
        "file": pulled.file,
        "commit": pulled.commit,
        "bytes": pulled.patch.size,
        "cached": pulled.cached,
        "pull": pulled.pinned,
    }


def _show(pulled: Pulled, target: Path, signature: Path | None) -> None:
    commit = "" if pulled.commit is None else f" at commit {pulled.commit}"
    say(f"patch {pulled.id} is in {target} ({human_bytes(pulled.patch.size)})")
    say(f"  from {pulled.source}{commit}{' (bytes from the cache)' if pulled.cached else ''}")
    if signature is not None:
        say(f"  signed; whose signature it is: kedit patch verify {target} --key PUBLIC_KEY.pem")
    base = pulled.patch.base.name or "MODEL"
    say(f"Does it fit your model? kedit patch verify {target} --base {base}")
