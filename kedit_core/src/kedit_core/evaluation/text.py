"""Where an answer ends, and when two answers are the same.

Definitions: real greedy generation with a natural stop, normalised exact match (Yang et al. 2025, arXiv 2502.11177),
with a full stop that knows initials, decimals and titles.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable
from unicodedata import category

from attrs import frozen

# Titles and the like stand before a name, so their dot never ends an answer. What stands *after* a name ("Inc.", "Jr.")
# is left out: there the dot usually does end it.
ABBREVIATIONS = frozenset(
    {
        *(
            "Adm",
            "Capt",
            "Col",
            "Cpl",
            "Dr",
            "Fr",
            "Ft",
            "Gen",
            "Gov",
            "Hon",
            "Lt",
            "Maj",
            "Messrs",
            "Mlle",
            "Mme",
            "Mr",
        ),
        *("Mrs", "Ms", "Mt", "Pres", "Prof", "Rep", "Rev", "Sen", "Sgt", "St", "Ste"),
        *("Jan", "Feb", "Aug", "Sept", "Oct", "Nov", "Dec"),
        *("approx", "ca", "cf", "e.g", "i.e", "vs"),
    }
)
ARTICLES = frozenset({"a", "an", "the"})

_WORD_BEFORE_DOT = re.compile(r"[^\W_]+(?:\.[^\W_]+)*\Z")  # "St", and "e.g" with its inner dot
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)


@frozen(kw_only=True)
class StopRule:
    """When a continuation is an answer.

    Attributes:
        raw_dots: every ``.`` ends the answer (as in WILD's code), not only one that ends a sentence.
        abbreviations: words whose dot does not end a sentence, in their own case.
    """

    raw_dots: bool = False
    abbreviations: frozenset[str] = ABBREVIATIONS

    def end(self, text: str, *, finished: bool) -> int | None:
        """Index of the character that ends the answer, or None while there is none.

        A ``.`` at the very end of an unfinished text is undecided (``3.`` may become ``3.5``), so None; in a finished
        one (EOS, or no tokens left) it counts.
        """
        for match in re.finditer(r"[.\n]", text):
            at = match.start()
            if match.group() == "\n" or self._dot_stops(text, at, finished):
                return at
        return None

    def decided(self, text: str) -> bool:
        """Whether decoding may stop: the answer ends in ``text``, whatever would follow."""
        return self.end(text, finished=False) is not None

    def cut(self, text: str) -> str:
        """The answer in a finished continuation: up to the earliest stop, stripped."""
        return text[: self.end(text, finished=True)].strip()

    def _dot_stops(self, text: str, at: int, finished: bool) -> bool:
        if self.raw_dots:
            return True
        following = text[at + 1 : at + 2]
        if not (following.isspace() if following else finished):
            return False
        word = _WORD_BEFORE_DOT.search(text, 0, at)
        if word is None:
            return True
        last = word.group().rsplit(".", 1)[-1]
        initial = len(last) == 1 and last.isupper()
        return not initial and word.group() not in self.abbreviations and last not in self.abbreviations


SENTENCE = StopRule()
WILD = StopRule(raw_dots=True)


def normalise(text: str) -> str:
    """Lower case, without punctuation, without the words a/an/the, single spaces.

    Punctuation is ASCII's and Unicode's categories P*. A text of articles alone ("A", as a grade) keeps them, so that
    it is not the same as an empty one.
    """
    words = "".join(c for c in text.lower().translate(_ASCII_PUNCTUATION) if category(c)[0] != "P").split()
    return " ".join([word for word in words if word not in ARTICLES] or words)


def exact_match(text: str, answers: Iterable[str]) -> bool:
    """Whether the normalised text has words and equals any normalised answer."""
    found = normalise(text)
    return bool(found) and any(found == normalise(answer) for answer in answers)


def contains(text: str, answers: Iterable[str]) -> bool:
    """Whether any normalised answer is a contiguous run of words of the normalised text."""
    found = f" {normalise(text)} "
    return any(words and f" {words} " in found for words in map(normalise, answers))


def word_f1(left: str, right: str) -> float:
    """F1 of the two texts' normalised words, as multisets; two texts without words agree (1.0)."""
    a, b = Counter(normalise(left).split()), Counter(normalise(right).split())
    if not a or not b:
        return float(a == b)
    common = (a & b).total()
    return 2 * common / (a.total() + b.total())


def best_f1(text: str, answers: Iterable[str]) -> float:
    """The largest :func:`word_f1` over the answers; 0 when there is none."""
    return max((word_f1(text, answer) for answer in answers), default=0.0)
