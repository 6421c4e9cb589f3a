"""Texts as vectors without any library or training: hashed character n-grams.

Deterministic (counts are whole numbers, hashes are CRC-32), so patches and tests may rest on it. It knows spelling, not
meaning: a sentence encoder finds rewordings that share no words, this one does not.
"""

from __future__ import annotations

import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence
from math import sqrt

import torch
from attrs import frozen
from torch import Tensor

_NAME = 4
"""How often a name's n-grams count: what a fact is about stands in its names, and facts of a kind share the rest."""


@frozen(kw_only=True)
class NGramEncoder:
    """Unit vectors of the n-grams of a text's words, each n-gram in one of ``width`` places with a sign.

    A word has a space on both sides; case does not count, except that the n-grams of a name (a word with a capital
    letter, unless it begins the text and no other name follows it) count :data:`_NAME` times. An n-gram that counts
    ``c`` times weighs ``sqrt(c)``.

    Attributes:
        width: length of a vector.
        shortest, longest: lengths of n-grams.
    """

    width: int = 1024
    shortest: int = 3
    longest: int = 5

    @property
    def id(self) -> str:
        """What a patch records: everything the vectors depend on."""
        return f"ngrams-{self.shortest}-{self.longest}-{self.width}"

    def encode(self, texts: Sequence[str]) -> Tensor:
        """``[texts, width]`` float32 on the CPU, of length 1; a text without any character gets zeros."""
        vectors = torch.zeros(len(texts), self.width, dtype=torch.float64)
        for row, text in enumerate(texts):
            counts = self._counts(text)
            codes = [zlib.crc32(gram.encode("utf-8", "surrogatepass")) for gram in counts]
            places = torch.tensor([(code >> 1) % self.width for code in codes], dtype=torch.int64)
            signs = [1 if code & 1 else -1 for code in codes]
            values = [sign * sqrt(count) for sign, count in zip(signs, counts.values(), strict=True)]
            vectors[row].index_add_(0, places, torch.tensor(values, dtype=torch.float64))
        lengths = vectors.norm(dim=1, keepdim=True)
        return (vectors / torch.where(lengths > 0, lengths, 1.0)).float()

    def _counts(self, text: str) -> Counter[str]:
        words = unicodedata.normalize("NFKC", text).split()
        capital = [word[:1].isupper() for word in words]
        counts: Counter[str] = Counter()
        for number, word in enumerate(words):
            is_name = capital[number] and (number > 0 or any(capital[1:2]))
            padded = f" {word.casefold()} "
            for length in range(self.shortest, min(self.longest, len(padded)) + 1):
                for start in range(len(padded) - length + 1):
                    counts[padded[start : start + length]] += _NAME if is_name else 1
        return counts
