"""Texts that an edit is to leave alone: drawn from a file, from a dataset's corpus, or written by the model itself."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from attrs import frozen

from kedit_core.editing import EditContext
from kedit_core.errors import InputError, UnknownNameError
from kedit_core.forward import TopK, generate_ids

_SUFFIXES = (".txt", ".jsonl")
_FIELD = "text"
_TOP_K = 100  # a written text is sampled from so many tokens
_WRITTEN = 64  # tokens of a written text
_ROWS = 64  # texts written together
_PATIENCE = 8  # times the texts that would do if none ended early


@frozen(eq=False)
class Texts:
    """Some texts as token rows.

    Attributes:
        rows: ids of each, special tokens in front as in any prompt.
        texts: the same as text.
        source: where they are from, for people.
        digest: SHA-256 of the rows.
        written: whether the model wrote them.
    """

    rows: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    source: str
    digest: str
    written: bool = False

    @classmethod
    def of(cls, rows: Sequence[tuple[int, ...]], texts: Sequence[str], source: str, written: bool = False) -> Texts:
        """With the digest of the rows."""
        whole = hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode())
        return cls(tuple(rows), tuple(texts), source, whole.hexdigest(), written)


def texts_for(context: EditContext, documents: int, max_len: int, seed: int, written: int) -> Texts:
    """A random part of the user's corpus (``options["corpus"]``: a file, a folder, a dataset's name), else of the
    corpus of the dataset meant for this model, else text that the unedited model writes.

    Args:
        documents: at most so many.
        max_len: tokens of each, at most; never more than the model has positions.
        seed: of the choice, or of the writing.
        written: how many tokens the model is to write, where it must.

    Raises InputError for a corpus that cannot be read or holds no text.
    """
    max_len = min(max_len, context.adapter.max_positions or max_len)
    source, lines = corpus_of(context)
    if lines is None:
        return _written(context, written, max_len, seed)
    chosen = _drawn(lines, documents, seed)
    rows, texts = [], []
    for text in chosen:
        with suppress(InputError):  # the tokenizer makes nothing of it
            rows.append(context.tokens.prompt(text).ids[:max_len])
            texts.append(text)
    if not rows:
        raise InputError(f"{source} holds no text; give a file with a document a line with --corpus")
    return Texts.of(rows, texts, source)


def corpus_of(context: EditContext) -> tuple[str, Iterable[str] | None]:
    """Where texts will come from, in words, and the documents; None for text of the model's own.

    Raises InputError for a corpus that is not there.
    """
    given = context.options.get("corpus")
    if given is None:
        for info in context.host.datasets():
            if info.corpus is not None and context.model_name is not None and context.model_name in info.models:
                return f"the corpus of {info.name}", info.corpus()
        return "text that the model writes", None
    path = Path(given)
    if path.exists():
        return path.name, _lines(path)
    with suppress(UnknownNameError):
        info = context.host.dataset(str(given))
        if info.corpus is not None:
            return f"the corpus of {info.name}", info.corpus()
        raise InputError(f"the dataset {info.name!r} has no corpus; give a file of text with --corpus")
    raise InputError(f"there is no text at {given}; give a .txt file (a document a line), .jsonl, or a folder of these")


def _lines(path: Path) -> Iterator[str]:
    files = sorted(f for f in path.rglob("*") if f.suffix in _SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise InputError(f"there is no text in {path.name}; give a .txt file (a document a line), .jsonl, or a folder")
    return _documents(files)


def _documents(files: Sequence[Path]) -> Iterator[str]:
    for file in files:
        number = 0
        try:
            with file.open(encoding="utf-8") as stream:
                for line in stream:
                    number += 1
                    if line.strip():
                        yield _text(line) if file.suffix == ".jsonl" else line.rstrip("\r\n")
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file.name} cannot be read in or after line {number} ({type(error).__name__}: {error}); write UTF-8 "
                f"text, a document a line, or JSON objects with a text in the field {_FIELD!r}"
            ) from error


def _text(line: str) -> str:
    text = json.loads(line)[_FIELD]
    if not isinstance(text, str):
        raise TypeError(f"{_FIELD!r} holds no text")
    return text


def _drawn(lines: Iterable[str], count: int, seed: int) -> list[str]:
    """``count`` of the documents in random order, in one pass that holds no more than these (reservoir sampling)."""
    rng = random.Random(seed)
    held: list[str] = []
    for number, text in enumerate(line for line in lines if line.strip()):
        if number < count:
            held.append(text)
        elif (place := rng.randrange(number + 1)) < count:
            held[place] = text
    rng.shuffle(held)
    return held


def _written(context: EditContext, wanted: int, max_len: int, seed: int) -> Texts:
    """Samples of the unedited model, each from one token drawn evenly from the vocabulary."""
    tokens, view = context.tokens, context.adapter
    generator = torch.Generator().manual_seed(seed)
    length = min(max_len, _WRITTEN)
    special = set(context.tokenizer.all_special_ids)
    ordinary = [i for i in sorted(context.tokenizer.get_vocab().values()) if i not in special and i < view.vocab_size]
    frame = tokens.prompt("a")
    real = [i for i, (start, end) in enumerate(frame.offsets or ((0, 1),)) if start < end]
    before, after = frame.ids[: real[0]], frame.ids[real[-1] + 1 :]
    rows: list[tuple[int, ...]] = []
    most = -(-wanted // length) * _PATIENCE + _ROWS
    with (
        context.stack.suspended(),
        context.progress("writing texts for the memory", total=float(wanted)) as step,
    ):
        while sum(map(len, rows)) < wanted and len(rows) < most:
            drawn = torch.randint(len(ordinary), (min(_ROWS, max(2, -(-wanted // length))),), generator=generator)
            prompts = [(*before, ordinary[i], *after) for i in drawn.tolist()]
            new = max(length - len(prompts[0]), 1)
            found = generate_ids(context.forward.model, view, tokens, prompts, new, sampler=TopK(_TOP_K, generator))
            # an encoder-decoder writes in its decoder, after one drawn token in its encoder
            made = [
                tuple(row) if view.is_encoder_decoder else (*prompt, *row)
                for prompt, row in zip(prompts, found, strict=True)
            ]
            rows += [row for row in made if len(row) > 1]
            step.advance(sum(map(len, made)))
    if len(rows) < 2:
        raise InputError("the model hardly writes anything, so it gives no texts for the memory; give --corpus")
    return Texts.of(rows, [tokens.decode(row) for row in rows], "text that the model writes", written=True)
