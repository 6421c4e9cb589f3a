"""The memory: inputs of the last MLP on texts that an edit is to leave alone (sheet section 2, 5 and 6).

They lie in front of every neuron, so they stay valid over a whole sequence of edits; they are read once for an Editor,
and again when other patches come on or go off. None of them is kept in a patch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from attrs import evolve, frozen
from torch import Tensor

from kedit_core.editing import EditContext
from kedit_core.errors import InputError
from kedit_core.forward import Batch, ForwardTools, buckets
from kedit_core.patches import EditPatch, ModuleOperation, PrivateRequests
from kedit_core.requests import EditRequest
from kedit_methods_memory.corpus import Texts, texts_for
from kedit_methods_memory.hparams.t_patcher import TPatcherHyperParams
from kedit_methods_memory.t_patcher.neurons import KIND
from kedit_methods_memory.t_patcher.place import LastMlp
from kedit_methods_memory.t_patcher.states import Asked

T = TypeVar("T")

_TOKENS = 4096  # of one forward
_WRITTEN = 12_000  # tokens that a model without a corpus writes for its memory, at most


@frozen
class Row:
    """One row of a batch: ``read`` by the only stack, or by the encoder while ``written`` is what the decoder is asked
    for (it is fed the same, shifted right)."""

    read: tuple[int, ...]
    written: tuple[int, ...] = ()

    @property
    def columns(self) -> int:
        """Positions that pass the last MLP."""
        return len(self.written or self.read)


@frozen(eq=False)
class Memory:
    """Queries ``[n, width]`` with where each is from.

    Attributes:
        vectors: float32 (float64 for such a model), where the neurons will be.
        where: ``[n, 2]`` (row, column).
        rows: the rows they were read in.
        texts: what each row says, in lower case.
    """

    vectors: Tensor
    where: Tensor
    rows: tuple[Row, ...]
    texts: tuple[str, ...]

    def sparing(self, subject: str | None) -> Memory:
        """Without what was read in texts that name the subject; all of it where nothing would be left."""
        if not subject:
            return self
        said = torch.tensor([subject.lower() in text for text in self.texts])
        kept = ~said[self.where[:, 0]]
        if bool(kept.all()) or not bool(kept.any()):
            return self
        return Memory(self.vectors[kept.to(self.vectors.device)], self.where[kept], self.rows, self.texts)

    def joined(self, examples: Sequence[Tensor]) -> Memory:
        """With the queries of edited examples behind it, which count for the losses alone."""
        if not examples:
            return self
        return evolve(self, vectors=torch.cat([self.vectors, *(each.to(self.vectors) for each in examples)]))

    def asked(self, forward: ForwardTools, count: int) -> Asked:
        """The cells of ``count`` of them, evenly spread, as one batch."""
        spread = torch.linspace(0, len(self.where) - 1, min(count, len(self.where))).round().long()
        where = self.where[spread]
        rows = sorted(set(where[:, 0].tolist()))
        cells = [(rows.index(row), column) for row, column in where.tolist()]
        return Asked(batch_of(forward, [self.rows[row] for row in rows]), torch.tensor(cells))


@frozen(eq=False)
class Memories:
    """What neurons are trained on, and what tells when to stop."""

    train: Memory
    validation: Memory


def memories_for(context: EditContext, place: LastMlp, hparams: TPatcherHyperParams) -> Memories:
    """The memory of the model as it stands, without edited examples.

    Raises InputError for a corpus that cannot be read, or that holds no two texts.
    """
    names = ("memory_documents", "memory_size", "validation_share", "memory_max_len", "memory_seed")
    settings = tuple(getattr(hparams, name) for name in names)
    stamp = (str(context.options.get("corpus")), settings, patches_below(context))
    memories, texts = _latest(context, "memory", stamp, lambda: _collected(context, place, hparams))
    context.note_resource("memory", texts.digest)
    if texts.written:
        context.warn(
            "memory_written_by_model",
            float(len(memories.train.vectors)),
            "give text with --corpus (or options={'corpus': FILE})",
            "no corpus is known for this model, so the memory was read from text that it wrote itself",
        )
    return memories


def examples_of(context: EditContext, place: LastMlp, requests: Sequence[EditRequest]) -> list[Tensor]:
    """Queries ``[positions, width]`` of edited examples, each read once for an Editor."""
    empty: dict[tuple[str, str], Tensor] = {}
    known = _latest(context, "examples", patches_below(context), lambda: empty)
    for request in requests:
        if (fact := (request.prompt, request.target_new)) not in known:
            known[fact] = _example(context, place, request)
    return [known[request.prompt, request.target_new] for request in requests]


def edited_before(context: EditContext) -> list[EditRequest]:
    """The facts of this method's patches on the model, in their order; those kept private are left out."""
    found: list[EditRequest] = []
    for entry in context.stack.patches:
        patch = entry.patch
        if _only_neurons(patch) and not isinstance(patch.requests, PrivateRequests):
            found += [EditRequest(prompt=fact["prompt"], target_new=fact["target_new"]) for fact in patch.requests]
    return found


def patches_below(context: EditContext) -> tuple[str, ...]:
    """Ids of the patches on the model that queries may depend on: all but those that only add neurons behind them."""
    return tuple(entry.patch.id for entry in context.stack.patches if not _only_neurons(entry.patch))


def row_of(context: EditContext, request: EditRequest, end: tuple[int, ...] = ()) -> tuple[Row, tuple[int, ...]]:
    """A prompt with its target (and ``end``) as the model reads them, and the target's ids."""
    pair = context.tokens.pair(request.prompt, request.target_new)
    target = (*pair.target_ids, *end)
    if context.adapter.is_encoder_decoder:
        return Row(pair.prompt_ids, target), target
    return Row((*pair.prompt_ids, *target[:-1])), target


def batch_of(forward: ForwardTools, rows: Sequence[Row]) -> Batch:
    """Rows as one batch, padded on the right: columns are positions."""
    return forward.batch([row.read for row in rows], targets=[row.written for row in rows])


def _latest(context: EditContext, name: str, stamp: Hashable, make: Callable[[], T]) -> T:
    """What was made last under a name, if it was made for the same stamp; only one of each is kept, for its size."""
    key = ("t_patcher", name)
    kept: tuple[Hashable, T] | None = context.memo.get(key)
    if kept is None or kept[0] != stamp:
        kept = context.memo[key] = (stamp, make())
    return kept[1]


def _only_neurons(patch: EditPatch) -> bool:
    return all(isinstance(each, ModuleOperation) and each.kind == KIND for each in patch.operations)


def _example(context: EditContext, place: LastMlp, request: EditRequest) -> Tensor:
    row, _ = row_of(context, request)
    # a decoder's first position is where the first token of its answer is asked for
    columns = range(0 if row.written else min(1, row.columns - 1), row.columns)
    return _read(context, place, [row], torch.tensor([(0, column) for column in columns]))


def _collected(context: EditContext, place: LastMlp, hparams: TPatcherHyperParams) -> tuple[Memories, Texts]:
    started = time.monotonic()
    written = min(int(hparams.memory_size / (1 - hparams.validation_share)), _WRITTEN)
    texts = texts_for(context, hparams.memory_documents, hparams.memory_max_len, hparams.memory_seed, written)
    rows = [_row(context, ids) for ids in texts.rows]
    held = [i for i, row in enumerate(rows) if _columns(row)]
    if len(held) < 2:
        raise InputError(f"{texts.source} holds fewer than two texts of two tokens; give more text with --corpus")
    for_validation = min(max(1, round(len(held) * hparams.validation_share)), len(held) - 1)
    size = max(1, round(hparams.memory_size * hparams.validation_share / (1 - hparams.validation_share)))
    generator = torch.Generator().manual_seed(hparams.memory_seed)
    parts = []
    for chosen, most in ((held[for_validation:], hparams.memory_size), (held[:for_validation], size)):
        own = [rows[i] for i in chosen]
        every = torch.tensor([(i, column) for i, row in enumerate(own) for column in _columns(row)])
        if len(every) > most:
            every = every[torch.randperm(len(every), generator=generator)[:most].sort().values]
        vectors = _read(context, place, own, every)
        parts.append(Memory(vectors, every, tuple(own), tuple(texts.texts[i].lower() for i in chosen)))
    # reported apart from the edit's own time: it is done once for a model
    context.records.setdefault("setup_seconds", []).append(time.monotonic() - started)
    return Memories(*parts), texts


def _row(context: EditContext, ids: tuple[int, ...]) -> Row:
    """A text as a row; an encoder reads its first half, and the decoder writes the rest."""
    if not context.adapter.is_encoder_decoder:
        return Row(ids)
    half = (len(ids) + 1) // 2
    return Row(ids[:half], ids[half:])


def _columns(row: Row) -> range:
    """Positions that a memory is taken from: all but the first, which sees nothing before it. (A decoder's first one
    does see something: what its encoder read.)"""
    return range(len(row.written)) if row.written else range(1, row.columns)


def _read(context: EditContext, place: LastMlp, rows: Sequence[Row], where: Tensor) -> Tensor:
    """Queries ``[n, width]`` at cells ``[n, 2]`` of the rows, in batches of rows of similar length."""
    forward = context.forward
    cells: dict[int, list[int]] = {}
    for number, row in enumerate(where[:, 0].tolist()):
        cells.setdefault(row, []).append(number)
    used = list(cells)
    found: list[Tensor] = []
    order: list[int] = []
    lengths = [len(rows[row].read) + len(rows[row].written) for row in used]
    with context.progress("reading the memory", total=float(len(used))) as step:
        for group in buckets(lengths, _TOKENS):
            members = [used[i] for i in group]
            numbers = [number for row in members for number in cells[row]]
            at = torch.tensor([(i, int(where[n, 1])) for i, row in enumerate(members) for n in cells[row]])
            batch = batch_of(forward, [rows[row] for row in members])
            found.append(forward.run(batch, capture=(place.query,), at=at).activations[place.query])
            order += numbers
            step.advance(len(group))
    vectors = torch.cat(found)
    wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    return wide[torch.tensor(order).argsort().to(wide.device)]
