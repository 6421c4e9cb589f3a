"""The irrelevant texts of an edit: what its memory must not react to.

An edit may bring its own (``meta["irrelevant"]``). Otherwise sentences are drawn from the user's corpus, from that of
the dataset meant for the model, or, failing both, from what the model writes. The probes that judge an edit are never
trained on, and neither are other edits' prompts, which are to be reacted to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kedit_core.editing import EditContext
from kedit_core.errors import RequestError
from kedit_core.requests import EditRequest, shortened
from kedit_methods_memory.corpus import corpus_of, texts_for
from kedit_methods_memory.hparams.wise import WiseHyperParams
from kedit_methods_memory.wise.sharding import generator_for

FIELD = "irrelevant"

_DOCUMENTS, _MAX_LEN, _WRITTEN = 4096, 64, 4096  # of the pool: documents, tokens of each, tokens that a model writes
_SHORTEST = 12  # characters
_TRIES = 64
_SENTENCES = re.compile(r"(?<=[.!?])\s+")


def own_texts(request: EditRequest) -> tuple[str, ...]:
    """What the request itself brings: a text or a list of texts; none when it brings nothing.

    Raises RequestError for something else, and for several that stand in the prompt: of one such text it is clear which
    part of the prompt is to be reacted to and which is not.
    """
    where = f"the request {shortened(request.prompt)}"
    texts = _texts(request.meta, where)
    inner = [text for text in dict.fromkeys(texts) if text in request.prompt]
    if len(inner) > 1:
        raise RequestError(
            where, [f"meta.{FIELD} has {len(inner)} texts that stand in the prompt ({inner}); keep one of them"]
        )
    return texts


def _texts(meta: Mapping[str, Any], where: str) -> tuple[str, ...]:
    given = meta.get(FIELD)
    if given is None:
        return ()
    texts = [given] if isinstance(given, str) else given
    if isinstance(texts, Sequence) and texts and all(isinstance(each, str) and each.strip() for each in texts):
        return tuple(texts)
    raise RequestError(where, [f"meta.{FIELD} is {given!r}; give a text, or a list of texts"])


def irrelevant_texts(
    context: EditContext, requests: Sequence[EditRequest], hparams: WiseHyperParams
) -> list[tuple[str, ...]]:
    """For each request its irrelevant texts, which follow from the request and the seed alone.

    Warns ``irrelevant_texts_written`` where the model had to write them. Raises InputError for a corpus that cannot be
    read.
    """
    own = [own_texts(request) for request in requests]
    # of the whole edit, since the model writes them best before anything of this method is on it
    if all(map(own_texts, context.requests)) and all(own):
        return own
    pool = _pool(context)
    missing = sum(not texts for texts in own)
    if missing and corpus_of(context)[1] is None:
        context.warn(
            "irrelevant_texts_written",
            float(missing),
            f"give real text with --corpus, or irrelevant texts with the requests (meta.{FIELD})",
            "the texts that the side memory learns not to react to are the model's own, for want of others",
        )
    return [
        texts or _drawn(pool, request, hparams.irrelevant_texts, context.seed)
        for request, texts in zip(requests, own, strict=True)
    ]


def _pool(context: EditContext) -> tuple[str, ...]:
    key = ("kedit-methods-memory", "wise", "irrelevant", context.seed, str(context.options.get("corpus")))

    def sentences() -> tuple[str, ...]:
        found = texts_for(context, _DOCUMENTS, _MAX_LEN, context.seed, _WRITTEN)
        cut = (sentence.strip() for text in found.texts for sentence in _SENTENCES.split(text))
        kept = tuple(dict.fromkeys(each for each in cut if len(each) >= _SHORTEST))
        return kept or found.texts

    return context.remember(key, sentences)


def _drawn(pool: Sequence[str], request: EditRequest, count: int, seed: int) -> tuple[str, ...]:
    """``count`` different texts that name neither subject nor prompt, nor stand in it, as far as there are such."""
    taken: dict[str, None] = {}
    generator = generator_for(seed, "irrelevant", request.id)
    about = [each.lower() for each in (request.subject, request.prompt) if each]
    for index in torch.randint(len(pool), (_TRIES * count,), generator=generator).tolist():
        text = pool[index]
        if text not in request.prompt and not any(each in text.lower() for each in about):
            taken[text] = None
        if len(taken) == count:
            break
    return tuple(taken) or (pool[0],)
