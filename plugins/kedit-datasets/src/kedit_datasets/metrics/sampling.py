"""Texts that a model writes about a request's subject, sampled as the papers on CounterFact do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from unicodedata import normalize

from kedit_core.requests import EditRequest

if TYPE_CHECKING:
    from kedit_core.editing import EditContext
    from kedit_core.evaluation import Answers

TOTAL_TOKENS = 100
TOP_K = 5
MODE = f"sample_top{TOP_K}_total{TOTAL_TOKENS}"
"""First part of the tag of what is measured on such texts."""
END_OF_TEXT = "<|endoftext|>"


def sampled_texts(context: EditContext, answers: Answers, prompts: Sequence[str]) -> list[str]:
    """One text for each prompt: the prompt and what a model writes on, 100 tokens together, top-5 sampling.

    A text follows from the prompt, ``context.seed`` and the model alone. Cleaned as upstream: NFKD, an empty line is a
    space, texts of special tokens are dropped.
    """
    gap = " " if context.adapter.is_encoder_decoder else ""
    special = {END_OF_TEXT, *special_tokens(context)}
    written = ask(context, answers, prompts)
    return [clean(prompt + gap + text, special) for prompt, text in zip(prompts, written, strict=True)]


def ask(context: EditContext, answers: Answers, prompts: Sequence[str]) -> list[str]:
    """What is written after each prompt, as it is."""
    return answers.sample(list(prompts), total_tokens=TOTAL_TOKENS, k=TOP_K, seed=context.seed)


def special_tokens(context: EditContext) -> tuple[str, ...]:
    """Texts of the tokenizer's special tokens."""
    return tuple(str(token) for token in getattr(context.tokenizer, "all_special_tokens", ()))


def clean(text: str, special: Iterable[str] = (END_OF_TEXT,)) -> str:
    """NFKD-normalised, an empty line as a space, without the texts of special tokens."""
    text = normalize("NFKD", text).replace("\n\n", " ")
    for token in sorted((normalize("NFKD", token) for token in special), key=len, reverse=True):
        text = text.replace(token, "")
    return text


def has_openings(requests: Sequence[EditRequest]) -> bool:
    """Whether any of the requests has generation prompts."""
    return any(request.generation_prompts for request in requests)
