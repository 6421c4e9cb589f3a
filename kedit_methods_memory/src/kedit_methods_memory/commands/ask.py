"""The command ``kedit ask``. Imports no torch until it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kedit_core.cli.common import emit, json_option, note, say
from kedit_core.cli.model_options import keys_option, read_patches, roles

if TYPE_CHECKING:
    from kedit_methods_memory.blackbox import EndpointEditor


@click.command()
@click.option("--base-url", envvar="OPENAI_BASE_URL", show_envvar=True, required=True, help="URL up to its version.")
@click.option("--model", required=True, help="Name that the endpoint knows the model by.")
@click.option("--api-key", envvar="OPENAI_API_KEY", show_envvar=True, help="Better given in the environment.")
@click.option(
    "--api",
    type=click.Choice(["chat", "completions"]),
    default="chat",
    show_default=True,
    help="A prompt is a message, or a text that is continued.",
)
@click.option("--system", help="Message of the system before each prompt (chat only).")
@click.option(
    "--patch",
    "patches",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Patch of ike or ike_context that acts; may be given several times, in order.",
)
@keys_option
@click.option("--with", "given", multiple=True, metavar="ROLE=PATH", help="What a patch needs beside itself.")
@click.option("--prompt", "prompts", multiple=True, required=True, help="Text to complete; may be given several times.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=50, show_default=True, help="Length of an answer.")
@click.option("--answer", is_flag=True, help="Stop at the end of the sentence, as protocol `generate` reads answers.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True, help="Seconds."
)
@click.option("--retries", type=click.IntRange(min=0), default=3, show_default=True, help="Further tries of a request.")
@click.option("--concurrency", type=click.IntRange(min=1), default=8, show_default=True, help="Requests at once.")
@click.option("--show-sent", is_flag=True, help="Show what is sent for each prompt.")
@json_option
@click.pass_context
def ask(
    context: click.Context,
    /,
    patches: tuple[Path, ...],
    keys: tuple[Path, ...],
    given: tuple[str, ...],
    prompts: tuple[str, ...],
    max_tokens: int,
    answer: bool,
    show_sent: bool,
    json_to: str | None,
    **endpoint: Any,
) -> None:
    """Ask a model behind an OpenAI-compatible endpoint, with patches that act on what is sent.

    The model itself stays as it is, and cannot be compared with what a patch was made for.

    \b
    kedit ask --base-url http://127.0.0.1:8000/v1 --model NAME --patch oslo.safetensors --prompt "The capital of"
    """
    from kedit_core.cli.groups import catalogue
    from kedit_methods_memory.blackbox import Endpoint, EndpointEditor

    editor = EndpointEditor(Endpoint(**endpoint), catalogue(context))
    resources = roles(given)
    for patch in read_patches(patches, keys):
        editor.apply(patch, resources)
    if not patches:
        note("note: no patch was given; these are the model's own answers")
    sent = editor.sent(prompts)
    texts = editor.answer(prompts, max_tokens) if answer else editor.generate(prompts, max_tokens)
    rows = [{"prompt": p, "sent": s, "text": t} for p, s, t in zip(prompts, sent, texts, strict=True)]
    emit(json_to, lambda: _data(editor, rows), lambda: _show(rows, show_sent))


def _data(editor: EndpointEditor, rows: list[dict[str, str]]) -> Mapping[str, Any]:
    return {
        "base_url": editor.endpoint.address,
        "model": editor.endpoint.model,
        "api": editor.endpoint.api,
        "patches": [patch.id for patch in editor.patches],
        "answers": rows,
    }


def _show(rows: list[dict[str, str]], show_sent: bool) -> None:
    for number, row in enumerate(rows):
        if number:
            say()
        say(row["sent"] if show_sent else row["prompt"])
        say(f"> {row['text'].strip() or '(nothing)'}")
