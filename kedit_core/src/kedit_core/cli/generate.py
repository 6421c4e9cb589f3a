"""``kedit generate``: complete prompts, with patches or without."""

from __future__ import annotations

from typing import Any

import click

from kedit_core.cli.common import emit, json_option, say
from kedit_core.cli.model_options import model_options, open_editor


@click.command()
@model_options
@click.option("--prompt", "prompts", multiple=True, required=True, help="Text to complete; may be given several times.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=50, show_default=True, help="Length of a completion."
)
@click.option("--answer", is_flag=True, help="Stop at the end of the sentence, as protocol `generate` reads answers.")
@json_option
def generate(prompts: tuple[str, ...], max_new_tokens: int, answer: bool, json_to: str | None, **model: Any) -> None:
    """Complete prompts greedily with MODEL and the given patches.

    \b
    kedit generate factworld:llama --patch oslo.safetensors --prompt "The capital of France is"
    """
    editor = open_editor(**model)
    texts = editor.answer(list(prompts)) if answer else editor.generate(list(prompts), max_new_tokens=max_new_tokens)
    data = {
        "patches": [entry.patch.id for entry in editor.stack.patches],
        "completions": [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)],
    }

    def show() -> None:
        for prompt, text in zip(prompts, texts, strict=True):
            joiner = "" if not text or text[0].isspace() or not answer else " "
            say(f"{prompt}{joiner}{text}")

    emit(json_to, lambda: data, show)
