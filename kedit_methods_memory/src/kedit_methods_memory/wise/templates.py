"""Short texts that a prompt is put behind while its answer is trained, so that it holds in other contexts too.

The bare ``{}``, and what the model greedily writes on from a few openings (Wang et al. 2024; specification: batch
layout). They are kept in the patch, so that later rounds train on the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from kedit_core.editing import EditContext
from kedit_core.forward import ForwardTools, generate_ids
from kedit_methods_memory.hparams.wise import WiseHyperParams

BARE = "{}"

_OPENINGS = (
    "I have read this before.",
    "You may want to know.",
    "Because it rained, they stayed.",
    "Yes, that is so.",
    "Q: What do people say?",
    "I looked it up in an old book.",
    "You can find it on the first page.",
    "Because of this, we went on together.",
    "Yes, and there is more to tell.",
    "Q: What comes after all of that?",
)
"""For encoder-decoders, whose decoder does not write what their encoder reads."""


def templates_for(context: EditContext, forward: ForwardTools, hparams: WiseHyperParams) -> tuple[str, ...]:
    """The bare template first; given as data, or written once for an Editor by the model as ``forward`` runs it."""
    if hparams.context_templates is not None:
        return hparams.context_templates
    if context.adapter.is_encoder_decoder:
        count = sum(count for _, count in hparams.context_lengths)
        return (BARE, *(f"{opening} {BARE}" for opening in _OPENINGS[:count]))
    own = None if context.previous is None else context.previous.id
    below = tuple(entry.patch.id for entry in context.stack.patches if entry.patch.id != own)
    key = ("kedit-methods-memory", "wise", "templates", hparams.context_lengths, hparams.context_start, below)
    return context.remember(key, lambda: _written(context, forward, hparams.context_lengths, hparams.context_start))


def _written(
    context: EditContext, forward: ForwardTools, lengths: Sequence[tuple[int, int]], starts: Sequence[str]
) -> tuple[str, ...]:
    tokens = context.tokens
    found = [BARE]
    for new, count in lengths:
        # a trailing space would be a token of its own, which no text goes on from
        prompts = [tokens.prompt(starts[i % len(starts)].rstrip()).ids for i in range(count)]
        rows = generate_ids(forward.model, context.adapter, tokens, prompts, new, scope=forward.scope, ignore_eos=True)
        for ids, row in zip(prompts, rows, strict=True):
            found.append(f"{_plain(tokens.decode([*ids, *row]))} {BARE}")
    return tuple(found)


def _plain(text: str) -> str:
    """On one line and without braces, which would be read as slots."""
    return re.sub(r"\s+", " ", re.sub(r"[{}]", " ", text)).strip()
