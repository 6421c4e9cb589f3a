"""The README of an adapter: what it is for, what it does, how it is used."""

from __future__ import annotations

import json
from collections.abc import Sequence

from kedit_core.patches import EditPatch, PrivateRequests
from kedit_peft.adapter import Adapter

_SHOWN = 10


def readme(adapter: Adapter, patches: Sequence[EditPatch], base_name: str | None, notes: Sequence[str]) -> str:
    """Markdown with the front matter that the Hugging Face Hub reads; the same for the same patches and options."""
    base = patches[0].base
    head = ["---", "library_name: peft"]
    if base_name is not None and ":" not in base_name:
        head.append(f"base_model: {json.dumps(base_name, ensure_ascii=False)}")
    head += ["tags:", "- lora", "- knowledge-editing", "- kedit", "---", ""]
    largest = max(adapter.weights, key=lambda weight: weight.error)
    what = "a kedit patch" if len(patches) == 1 else f"{len(patches)} kedit patches together"
    weights = f"{len(adapter.weights)} weight{'s' * (len(adapter.weights) != 1)}"
    body = [
        "# Knowledge edit as a LoRA adapter",
        "",
        f"Does what {what} did to `{base_name or base.architecture}` ({base.architecture}).",
        "",
        *(f"- patch `{patch.id}` of method `{patch.method.name}`" for patch in patches),
        f"- rank {adapter.rank}, {adapter.dtype}, {weights}, no scaling (`lora_alpha` = `r`)",
        f"- largest relative error: {largest.error:.2e} at `{largest.place}`",
        "",
        "```python",
        "from peft import PeftModel",
        "",
        'model = PeftModel.from_pretrained(model, "this folder")',
        "```",
        "",
        *_facts(patches),
        *(f"- note: {note}" for note in notes),
    ]
    return "\n".join(head + body).rstrip() + "\n"


def _facts(patches: Sequence[EditPatch]) -> list[str]:
    """The edited facts that are not private, as inline code (whose text is not read as Markdown)."""
    shown, private = [], 0
    for patch in patches:
        if isinstance(patch.requests, PrivateRequests):
            private += patch.requests.count
        else:
            shown += [f"- {_code(fact['prompt'])} -> {_code(fact['target_new'])}" for fact in patch.requests]
    lines = shown[:_SHOWN]
    if len(shown) > _SHOWN:
        lines.append(f"- and {len(shown) - _SHOWN} more")
    if private:
        lines.append(f"- {private} facts that their author keeps private")
    return ["Facts:", "", *lines, ""] if lines else []


def _code(text: str) -> str:
    fence = "`" * (max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0) + 1)
    return f"{fence} {' '.join(text.split())} {fence}"
