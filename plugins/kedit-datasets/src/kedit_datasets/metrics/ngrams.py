"""Words of a text, and how varied its n-grams are.

Generation entropy (GE): Zhang et al. 2018, "Generating informative and diverse conversational responses"; as Meng et
al. 2022 (ROME, section 3.3) weigh it for edited models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import log2
from typing import Any

from kedit_core.evaluation import SENTENCE
from kedit_core.extras import needed

WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""n -> weight of the entropy of n-grams; GE is the mean of the two products."""


def ngram_entropy(words: Sequence[str], n: int) -> float | None:
    """Entropy in bits of the relative frequencies of the text's n-grams; None when it has fewer than ``n`` words."""
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    total = counts.total()
    if total == 0:
        return None
    return sum(-count / total * log2(count / total) for count in counts.values())


def generation_entropy(words: Sequence[str]) -> float | None:
    """GE in bits, ``(2/3 H_2 + 4/3 H_3) / 2``; None for fewer than three words, which upstream's code divides by."""
    weighed = []
    for n, weight in WEIGHTS.items():
        entropy = ngram_entropy(words, n)
        if entropy is None:
            return None
        weighed.append(weight * entropy)
    return sum(weighed) / len(weighed)


def repeated_share(words: Sequence[str], n: int) -> float:
    """Share of a text's n-grams that it had before; 0 for a text without any."""
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    return 1 - len(counts) / counts.total() if counts else 0.0


def word_tokenizer() -> Callable[[str], list[str]]:
    """NLTK's word tokenizer, sentence by sentence, as its ``word_tokenize``, without any download.

    ``word_tokenize`` finds sentences with a trained model (Punkt) that has to be downloaded. All that depends on them
    is which full stops are words of their own; here a full stop ends a sentence by the core's rule, which knows
    initials, decimals and titles (``kedit_core.evaluation.SENTENCE``).

    Raises MissingExtraError without NLTK.
    """
    nltk = needed("nltk.tokenize.destructive", "fluency", "kedit-datasets[fluency]")
    tokenizer: Any = nltk.NLTKWordTokenizer()

    def words(text: str) -> list[str]:
        return [word for sentence in sentences(text) for word in tokenizer.tokenize(sentence)]

    return words


def sentences(text: str) -> list[str]:
    """A text cut after every full stop that ends a sentence; joined by spaces they are the text."""
    rest, found = " ".join(text.split()), []
    while (end := SENTENCE.end(rest, finished=True)) is not None:
        found.append(rest[: end + 1])
        rest = rest[end + 1 :].lstrip()
    return [*found, rest] if rest else found
