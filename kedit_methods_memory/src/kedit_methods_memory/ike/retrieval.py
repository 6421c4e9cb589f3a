"""Which demonstrations a fact gets: nearest records first, types by a shuffled schedule, variants drawn at random."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from attrs import frozen
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from kedit_core.files import replacing
from kedit_methods_memory.encoders import Encoder
from kedit_methods_memory.ike import texts
from kedit_methods_memory.ike.corpus import Corpus


@frozen(order=True)
class Drawn:
    """One demonstration of a corpus: number of the record, type, and which paraphrase or neighbour (0 for a copy)."""

    record: int
    kind: int
    variant: int


@frozen(eq=False)
class Index:
    """The vectors of a corpus.

    Attributes:
        items: the demonstration that each vector is of.
        vectors: ``[items, width]`` float32 of length 1.
        blank_line: whether the texts kept the blank line at their end (EasyEdit).
    """

    items: tuple[Drawn, ...]
    vectors: Tensor
    blank_line: bool

    def scores(self, fact: tuple[str, str], encoder: Encoder) -> Tensor:
        """``[items]`` cosine of every demonstration with the fact's query text."""
        query = encoder.encode([texts.searched(texts.head(*fact) + fact[0].rstrip(), self.blank_line)])[0]
        return self.vectors @ query


def all_items(corpus: Corpus) -> tuple[Drawn, ...]:
    """Every demonstration a corpus has: of each record the copy, its paraphrases, its neighbours."""
    return tuple(
        Drawn(number, kind, variant)
        for number, record in enumerate(corpus.records)
        for kind in (texts.COPY, texts.UPDATE, texts.RETAIN)
        for variant in range(record.variants(kind))
    )


def index_of(corpus: Corpus, encoder: Encoder, blank_line: bool, cache: Path | None = None) -> Index:
    """The index of a corpus: all its demonstrations encoded, or read from ``cache``, a folder.

    What is kept is found under a digest of the texts and of the encoder, so it is never another corpus's.
    """
    items = all_items(corpus)
    written = [texts.searched(text, blank_line) for text in corpus.every_text()]
    if not written:
        return Index(items, torch.zeros(0, 1), blank_line)
    digest = hashlib.sha256(repr(encoder.identity).encode())
    for text in written:
        digest.update(hashlib.sha256(text.encode()).digest())
    slow = encoder.identity.sha256 is not None  # the built-in encoder is as quick as reading a file
    file = None if cache is None or not slow else cache / "demonstrations" / f"{digest.hexdigest()}.safetensors"
    vectors = None if file is None else _kept(file, len(written))
    if vectors is None:
        vectors = encoder.encode(written)
        if file is not None:
            _keep(file, vectors)
    return Index(items, vectors, blank_line)


def ranked_records(index: Index, fact: tuple[str, str], encoder: Encoder, allowed: Sequence[int]) -> list[int]:
    """The allowed records, nearest first: a record is as near as its nearest text; equally near ones by number."""
    if not allowed:
        return []
    owners = torch.tensor([each.record for each in index.items])
    best = torch.full((int(owners.max()) + 1,), -torch.inf)
    best = best.scatter_reduce(0, owners, index.scores(fact, encoder), "amax")[torch.tensor(allowed)]
    return [allowed[i] for i in best.sort(descending=True, stable=True).indices.tolist()]


def ranked_items(index: Index, fact: tuple[str, str], encoder: Encoder, allowed: Sequence[int]) -> list[Drawn]:
    """The demonstrations of allowed records, nearest first, whatever their type; equally near ones by number."""
    wanted = set(allowed)
    rows = [i for i, each in enumerate(index.items) if each.record in wanted]
    order = index.scores(fact, encoder)[rows].sort(descending=True, stable=True).indices.tolist()
    return [index.items[rows[i]] for i in order]


def schedule(k: int, ratio: tuple[int, int, int], rng: random.Random) -> list[int]:
    """``k`` types in the ratio copy : update : retain, shuffled; what rounding leaves over retains."""
    parts = sum(ratio)
    copies = min(k, round(k * ratio[0] / parts))
    updates = min(k - copies, round(k * ratio[1] / parts))
    kinds = [texts.COPY] * copies + [texts.UPDATE] * updates + [texts.RETAIN] * (k - copies - updates)
    rng.shuffle(kinds)
    return kinds


def drawn_for(
    index: Index,
    corpus: Corpus,
    encoder: Encoder,
    fact: tuple[str, str],
    allowed: Sequence[int],
    k: int,
    ratio: tuple[int, int, int],
    seed: int,
) -> list[Drawn]:
    """The demonstrations of one fact, nearest record first; everything random follows from ``seed``."""
    rng = random.Random(seed)
    near = ranked_records(index, fact, encoder, allowed)[:k]
    kinds = schedule(len(near), ratio, rng)
    return [
        Drawn(number, kind, rng.randrange(corpus.records[number].variants(kind)))
        for number, kind in zip(near, kinds, strict=True)
    ]


def _kept(file: Path, count: int) -> Tensor | None:
    try:
        vectors = load_file(file)["vectors"]
    except (OSError, SafetensorError, KeyError):
        return None
    return vectors if len(vectors) == count else None


def _keep(file: Path, vectors: Tensor) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as stream:
            stream.write(save({"vectors": vectors.contiguous()}))
    except OSError:
        return  # a cache that cannot be written costs time next time, and nothing else
