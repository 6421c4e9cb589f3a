"""TF-IDF vectors with weights that somebody else fitted, as scikit-learn's TfidfVectorizer makes them by default.

Lower case, words of at least two letters or digits, raw counts times idf, length 1 in l2; words outside the vocabulary
count for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from kedit_core.errors import InputError
from kedit_datasets.records import json_document

_WORD = re.compile(r"\b\w\w+\b")


@frozen(eq=False)
class Vector:
    """A sparse vector of length 1 (or none): ``columns [n]`` ascending, ``weights [n]`` float64."""

    columns: NDArray[np.int64]
    weights: NDArray[np.float64]

    def __bool__(self) -> bool:
        """Whether it has any weight."""
        return bool(self.weights.any())

    def cosine(self, other: Vector) -> float:
        """Cosine with another vector; 0 where one has no weight."""
        _, mine, theirs = np.intersect1d(self.columns, other.columns, assume_unique=True, return_indices=True)
        return float(self.weights[mine] @ other.weights[theirs])


@frozen(eq=False)
class TfIdf:
    """Published weights: word -> column, and each column's inverse document frequency ``[columns]``."""

    vocabulary: Mapping[str, int]
    idf: NDArray[np.float64]

    def vector(self, text: str) -> Vector:
        """The vector of a text; without weight when it has no word of the vocabulary."""
        found = [column for word in _WORD.findall(text.lower()) if (column := self.vocabulary.get(word)) is not None]
        columns, counts = np.unique(np.array(found, dtype=np.int64), return_counts=True)
        weights = counts * self.idf[columns]
        length = np.linalg.norm(weights)
        return Vector(columns, weights / length if length else weights)


def read_tfidf(idf_file: Path, vocabulary_file: Path) -> TfIdf:
    """The weights in ``idf.npy`` (one number per word) and a JSON file of word -> column.

    Raises InputError for files that cannot be read, or that do not belong together.
    """
    try:
        # an .npy may hold pickled objects, which run code when they are read
        idf = np.load(idf_file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{idf_file} cannot be read as a numpy array ({error}); give idf.npy as published") from error
    if not isinstance(idf, np.ndarray) or idf.ndim != 1 or idf.dtype.kind not in "fiu" or not np.isfinite(idf).all():
        raise InputError(f"{idf_file} holds no one-dimensional array of numbers; give idf.npy as published")
    vocabulary: Any = json_document(vocabulary_file)
    if not isinstance(vocabulary, dict) or not all(type(column) is int for column in vocabulary.values()):
        raise InputError(f"{vocabulary_file} is no object of word -> column; give tfidf_vocab.json as published")
    if sorted(vocabulary.values()) != list(range(len(idf))):
        raise InputError(
            f"{vocabulary_file} has {len(vocabulary)} words, which are not the {len(idf)} columns of {idf_file}; "
            "give two files that were made together"
        )
    return TfIdf(vocabulary, idf.astype(np.float64))
