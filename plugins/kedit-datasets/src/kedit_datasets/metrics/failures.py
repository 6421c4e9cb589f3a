"""The class of a wrong answer.

The four classes are those that Zhang et al. 2024 (KnowEdit, arXiv 2401.01286) sorted answers into by hand; the rules
that decide here, and their thresholds, are kedit's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kedit_core.evaluation import normalise
from kedit_datasets.metrics.ngrams import repeated_share
from kedit_datasets.metrics.words import content_words, meaning_of, words_of

MEANINGLESS, PARTIAL, MISSING, IRRELEVANT = "meaningless", "partial", "missing", "irrelevant"
CLASSES: Mapping[str, str] = {
    MEANINGLESS: "nothing is said: no content, repetition, or words of the prompt only",
    PARTIAL: "something of the new answer stands beside something of the old one",
    MISSING: "a part of the new answer is missing, and nothing of the old one is there",
    IRRELEVANT: "something else is said",
}
"""Every wrong answer is in exactly one."""

REPEATED = 0.6
"""From this share of 3-grams that the text had before it is repetition."""
PREFIX = 3
"""From so many letters the beginning of a word counts as a part of it."""


def classify(output: str, targets: Sequence[str], old: Iterable[str], prompt: str) -> str:
    """The class of a wrong answer, the first that fits.

    Args:
        output: what the model answered, special tokens taken out.
        targets: the accepted answers; one that comes closest decides.
        old: what was answered before: the true answer, and the base model's.
        prompt: what was asked.
    """
    words, content = words_of(output), content_words(output)
    if not content or repeated_share(words, 3) >= REPEATED or set(content) <= set(words_of(prompt)):
        return MEANINGLESS
    said = frozenset(words)
    wanted = {target: meaning_of(target) for target in targets}
    before = frozenset(word for text in old for word in meaning_of(text)).difference(*wanted.values())
    if said & before:
        return PARTIAL if any(said & meant for meant in wanted.values()) else IRRELEVANT
    for target, meant in wanted.items():
        shares = bool(said & meant) or any(_begins(word, meant) for word in content)
        if (shares and not meant <= said) or _is_part(output, target):
            return MISSING
    return IRRELEVANT


def _begins(word: str, meant: Iterable[str]) -> bool:
    return len(word) >= PREFIX and any(each.startswith(word) for each in meant)


def _is_part(output: str, target: str) -> bool:
    """Whether the output is the target's beginning, or a run of its words, and not all of it."""
    found, whole = normalise(output), normalise(target)
    return found != whole and (whole.startswith(found) or f" {found} " in f" {whole} ")
