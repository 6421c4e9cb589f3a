"""The texts of IKE, version 1: what stands before a prompt (Zheng et al. 2023, arXiv 2305.12740)."""

from __future__ import annotations

import re
import unicodedata

TEMPLATE_VERSION = 1
COPY, UPDATE, RETAIN = 0, 1, 2
"""Types of demonstrations: copy the fact, apply it to another wording, leave another answer as it is."""


def most_tokens(text: str) -> int:
    """The most tokens that a text is taken to have: the UTF-8 bytes of it, or of its NFKC form where these are more.

    Tokenizers that go down to bytes at most stay within it, also those that put text in the form NFKC first (T5's);
    one sign may be 11 times as long then.
    """
    return max(len(text.encode()), len(unicodedata.normalize("NFKC", text).encode()))


def joined(prompt: str, answer: str) -> str:
    """A prompt and its answer with one space between them."""
    return f"{prompt.rstrip()} {answer.strip()}"


def head(prompt: str, target: str) -> str:
    """What a query block has before the query: the fact, and the beginning of the line that the query completes."""
    return f"New Fact: {joined(prompt, target)}\nPrompt: "


def query_head(mode: str, fact: tuple[str, str]) -> str:
    """What the query block of a fact has before the query; without the fact in the mode ``format``."""
    return "Prompt: " if mode == "format" else head(*fact)


def demonstration(fact: tuple[str, str], shown: tuple[str, str]) -> str:
    """A demonstration: the fact (prompt, target), and what a prompt is answered with after it."""
    return f"{head(*fact)}{joined(*shown)}\n\n"


def searched(text: str, blank_line: bool) -> str:
    """A demonstration or query as the encoder reads it; EasyEdit leaves the blank line at its end."""
    stripped = text.removesuffix("\n\n")
    return f"{stripped}\n\n" if blank_line else stripped


def cleaned(paraphrase: str, subject: str | None) -> str:
    """A CounterFact paraphrase without the unrelated text in front, as the original's ``clean_paraphrase.py`` cuts it.

    Kept is what lies between the last full stop or line feed before the subject and the end; where the word
    ``Category`` remains, from the subject on. Without the subject in it, the paraphrase stays as it is.
    """
    at = paraphrase.find(subject) if subject else -1
    if at < 0:
        return paraphrase
    breaks = [match.end() for match in re.finditer(r"[.\n]", paraphrase[:at])]
    kept = paraphrase[breaks[-1] if breaks else 0 :].strip()
    return paraphrase[at:] if "Category" in kept else kept
