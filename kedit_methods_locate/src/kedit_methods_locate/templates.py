"""Context templates: the short texts a prompt is put behind, so that its key and value hold in any context.

The first is always the bare ``{}``; the others are sampled from the model as it was before any edit (Meng et al. 2022,
appendix E.5; specification of the samples: ``context_lengths``, ``context_start``). They are data: kept in the patch,
and can be passed in instead of sampled.

An encoder-decoder reads the prompt in its encoder, and what its decoder writes is no text to put before a prompt, so it
gets the first of a fixed list of neutral openings instead.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import torch

from kedit_core.editing import EditContext
from kedit_core.forward import TopK, generate_ids
from kedit_methods_locate.hparams import ContextHyperParams

BARE = "{}"
TOP_K = 5

OPENINGS = (
    "Here is a fact.",
    "As we know.",
    "The day was long.",
    "He said this.",
    "I looked it up.",
    "Because it rained, we stayed.",
    "You can read it here.",
    "There is more to say.",
    "It was in the paper.",
    "She wrote a letter.",
    "The answer came at last.",
    "Therefore we went on together.",
    "People often ask about this.",
    "In the morning they left.",
    "I have heard it before.",
    "You may want to know.",
    "The book lay on the table.",
    "Nobody was surprised by the news.",
    "We talked about many things.",
    "Because of this, it matters.",
)
"""Contexts for encoder-decoders, about as long as the sampled ones."""


def clean(text: str) -> str:
    """A sampled text as a context: NFKD, blank lines to a space, braces replaced by spaces.

    Braces would be read as slots; the papers' code leaves them in and then fails now and then.
    """
    return re.sub(r"[{}]", " ", unicodedata.normalize("NFKD", text).replace("\n\n", " "))


def context_templates(context: EditContext, hparams: ContextHyperParams) -> tuple[str, ...]:
    """The templates of this edit, bare one first: given as data, or sampled once per Editor from the unedited model.

    The samples depend on the model, the tokenizer, the seed and the settings only, not on how many edits came before:
    they are drawn with the stack suspended and with a generator of their own, seeded with ``context.seed``.
    """
    if hparams.context_templates is not None:
        return hparams.context_templates
    lengths, starts = hparams.context_lengths, hparams.context_start
    if context.adapter.is_encoder_decoder:
        return (BARE, *(f"{opening} {BARE}" for opening in OPENINGS[: sum(count for _, count in lengths)]))

    def sample() -> tuple[str, ...]:
        with context.stack.suspended():
            return sampled_templates(context, lengths, starts)

    return context.remember(("kedit-methods-locate", "templates", context.seed, lengths, starts), sample)


def sampled_templates(
    context: EditContext, lengths: Sequence[tuple[int, int]], starts: Sequence[str]
) -> tuple[str, ...]:
    """Templates drawn from the model as it stands: top-5 sampling, renormalised, ``lengths`` counting all tokens."""
    generator = torch.Generator().manual_seed(context.seed)
    tokens = context.tokens
    texts = [BARE]
    for length, count in lengths:
        prompts = [tokens.prompt(starts[row % len(starts)]).ids for row in range(count)]
        new = [max(length - len(ids), 1) for ids in prompts]
        rows = generate_ids(
            context.model,
            context.adapter,
            tokens,
            prompts,
            max(new, default=1),
            sampler=TopK(TOP_K, generator),
            ignore_eos=True,  # an end-of-text marker is dropped from the text and does not shorten it
        )
        for ids, row, most in zip(prompts, rows, new, strict=True):
            texts.append(f"{clean(tokens.decode([*ids, *row[:most]]))}. {BARE}")
    return tuple(texts)
