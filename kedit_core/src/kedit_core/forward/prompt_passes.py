"""One batch of prompts, each read once for its targets' scores and for what the model writes after it.

What is fed once is not fed again: further targets and the written tokens follow from the prompts' KV cache, and the
encoder of an encoder-decoder runs once. :mod:`prompt_reading` says what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate, islice, pairwise
from typing import TYPE_CHECKING

import torch
from attrs import evolve, frozen
from torch import Tensor, log_softmax

from kedit_core.forward.batch import Batch, Side, buckets, collate, shift_right
from kedit_core.forward.decoding import CausalDecoder, Seq2SeqDecoder
from kedit_core.forward.generation import Ending, Row, end_ids, next_logits, told, write_on
from kedit_core.forward.run import decoder_start
from kedit_core.forward.scoring import PairScore, scores_in
from kedit_core.forward.state import first_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kedit_core.forward.scope import PromptScope
    from kedit_core.forward.tokens import TokenBoundary
    from kedit_core.models import ModelView

Ids = tuple[int, ...]


@frozen
class Asked:
    """What is asked of one prompt.

    Attributes:
        prompt: its ids with special tokens.
        targets: ids of the targets to score.
        writes: whether the model is to write on.
    """

    prompt: Ids
    targets: tuple[Ids, ...] = ()
    writes: bool = False


@frozen(eq=False)
class Found:
    """A score for each target, and the new ids (empty when none were asked for)."""

    scores: tuple[PairScore, ...]
    new: list[int]


@frozen(eq=False)
class Passes:
    """Reads batches of prompts; attributes are the arguments of :func:`read_prompts`."""

    model: PreTrainedModel
    view: ModelView
    boundary: TokenBoundary
    max_new_tokens: int
    stop: Callable[[str], bool] | None
    scope: PromptScope | None
    batch_tokens: int
    side: Side

    def length(self, one: Asked) -> int:
        """Columns that a row comes to have."""
        new = self.max_new_tokens if one.writes else 0
        return len(one.prompt) + max(new, *map(len, one.targets), 0)

    def read(self, asked: Sequence[Asked], members: Sequence[int]) -> list[Found]:
        """All that is asked of some prompts, as one batch; ``members`` as the scope is told."""
        return (self._seq2seq if self.view.is_encoder_decoder else self._causal)(asked, members)

    # ------------------------------------------------------------------ decoder-only
    def _causal(self, asked: Sequence[Asked], members: Sequence[int]) -> list[Found]:
        """Prompts that are one batch, each with its first target."""
        fed = [(one.targets[0] if one.writes else one.targets[0][:-1]) if one.targets else () for one in asked]
        batch = self._batch([(*one.prompt, *ids) for one, ids in zip(asked, fed, strict=True)], asked, members)
        ends = _prompt_ends(batch)
        cells = [(row, ends[row] + t) for row, ids in enumerate(fed) for t in range(len(ids) + 1)]
        # of each row, where the logits after its prompt are; those after what was fed with it follow
        first = list(accumulate((len(ids) + 1 for ids in fed), initial=0))
        with told(self.scope, batch):
            decoder = CausalDecoder(self.model, self.view, batch)
            logits = decoder.read(torch.tensor(cells))
            further, where = self._further(decoder, asked, members, first, len(cells))
            scores = _scores(torch.cat([logits, *further]), asked, first, where)
            best = logits.argmax(dim=-1).tolist()
            new = self._written(decoder, asked, [best[a:b] for a, b in pairwise(first)])
        return [Found(one, ids) for one, ids in zip(scores, new, strict=True)]

    def _further(
        self, decoder: CausalDecoder, asked: Sequence[Asked], members: Sequence[int], first: Sequence[int], at: int
    ) -> tuple[list[Tensor], dict[tuple[int, int], list[int]]]:
        """Logits for all targets but each row's first; and, by row and target, which logits are a target's: the one
        after the prompt, and those after its own tokens, counted from ``at``."""
        pairs = [(row, k) for row, one in enumerate(asked) for k in range(1, len(one.targets))]
        where = {(row, k): [first[row]] for row, k in pairs}
        # a target of one token is read off the prompt's end alone
        longer = [(row, k) for row, k in pairs if len(asked[row].targets[k]) > 1]
        found: list[Tensor] = []
        for group in buckets([self.length(asked[row]) for row, _ in longer], self.batch_tokens):
            rows = torch.tensor([longer[i][0] for i in group])
            fed = [asked[row].targets[k][:-1] for row, k in (longer[i] for i in group)]
            for i, ids in zip(group, fed, strict=True):
                where[longer[i]] += range(at, at + len(ids))
                at += len(ids)
            with self._following(rows, members, decoder.device):
                part = decoder.part(rows, torch.tensor([len(asked[row].prompt) for row in rows.tolist()]))
                found.append(
                    part.extend(fed, torch.tensor([(i, t) for i, ids in enumerate(fed) for t in range(len(ids))]))
                )
        return found, where

    def _written(self, decoder: CausalDecoder, asked: Sequence[Asked], best: Sequence[list[int]]) -> list[list[int]]:
        """What is written, given the likeliest ids after each prompt and after each token that was fed with it."""
        new: list[list[int]] = [[] for _ in asked]
        ending = Ending(self.boundary, self.max_new_tokens, end_ids(self.model), self.stop)
        going: list[tuple[int, Row]] = []
        for i, one in enumerate(asked):
            if one.writes:
                row = ending.row(one.prompt, new[i])
                if _accept(row, one.targets[0] if one.targets else (), best[i]):
                    going.append((i, row))
        if going:
            index, rows = torch.tensor([i for i, _ in going]), [row for _, row in going]
            # all but the newest token of each row has been fed
            rest = decoder.part(index, torch.tensor([len(row.prompt) + len(row.new) - 1 for row in rows]))
            if self.scope is not None:
                self.scope.select_rows(index)
            write_on(rest, rows, next_logits(rest, rows, self.scope), self.scope)
        return new

    # ------------------------------------------------------------------ encoder-decoder
    def _seq2seq(self, asked: Sequence[Asked], members: Sequence[int]) -> list[Found]:
        """Prompts that are one batch: the encoder runs once, the decoder for each target and to write."""
        batch = self._batch([one.prompt for one in asked], asked, members)
        start = decoder_start(self.model)
        pairs = [(row, target) for row, one in enumerate(asked) for target in one.targets]
        scores: dict[int, PairScore] = {}
        new: list[list[int]] = [[] for _ in asked]
        writing = [i for i, one in enumerate(asked) if one.writes]
        with told(self.scope, batch):
            decoder = Seq2SeqDecoder(self.model, self.view, batch)
            decoder.encode()  # while the scope is told of the prompts' rows
            for group in buckets([self.length(asked[row]) for row, _ in pairs], self.batch_tokens):
                rows = torch.tensor([pairs[k][0] for k in group])
                targets = [pairs[k][1] for k in group]
                fed = collate([shift_right(ids, start) for ids in targets], self.boundary.pad_id).input_ids
                cells = torch.tensor([(row, t) for row, ids in enumerate(targets) for t in range(len(ids))])
                with self._following(rows, members, decoder.device):
                    logits = decoder.read(rows, fed.to(decoder.device), cells)
                scores.update(zip(group, scores_in(log_softmax(logits.float(), dim=-1), targets), strict=True))
            if writing:
                ending = Ending(self.boundary, self.max_new_tokens, end_ids(self.model), self.stop)
                index = torch.tensor(writing)
                decoder.select(index)
                if self.scope is not None:
                    self.scope.select_rows(index)
                chosen = [ending.row(asked[i].prompt, new[i]) for i in writing]
                write_on(decoder, chosen, decoder.prefill(), self.scope)
        of_each: list[list[PairScore]] = [[] for _ in asked]
        for k, (row, _) in enumerate(pairs):
            of_each[row].append(scores[k])
        return [Found(tuple(one), ids) for one, ids in zip(of_each, new, strict=True)]

    # ------------------------------------------------------------------ both
    def _batch(self, rows: Sequence[Ids], asked: Sequence[Asked], members: Sequence[int]) -> Batch:
        lengths = [len(one.prompt) for one in asked]
        device = first_device(self.model)
        batch = collate(rows, self.boundary.pad_id, self.side, device, prompt_lengths=lengths)
        return evolve(batch, members=torch.tensor(list(members)))

    def _following(
        self, rows: Tensor, members: Sequence[int], device: torch.device
    ) -> AbstractContextManager[PromptScope | None]:
        """Tell the scope of a pass over targets after the prompts of ``rows``, whose last tokens are before it."""
        if self.scope is None:
            return nullcontext()
        texts = torch.tensor([members[row] for row in rows.tolist()])
        return self.scope.running(torch.full((len(texts),), -1, device=device), texts)


def _prompt_ends(batch: Batch) -> list[int]:
    ends = batch.starts + batch.lengths - 1 if batch.prompt_ends is None else batch.prompt_ends
    return [int(end) for end in ends.tolist()]


def _scores(
    logits: Tensor, asked: Sequence[Asked], first: Sequence[int], where: Mapping[tuple[int, int], Sequence[int]]
) -> list[tuple[PairScore, ...]]:
    """Each row's scores, given which logits are those of its further targets, and where its first one's begin."""
    targets = [target for one in asked for target in one.targets]
    cells = [
        cell
        for row, one in enumerate(asked)
        for k, target in enumerate(one.targets)
        for cell in (where[row, k] if k else range(first[row], first[row] + len(target)))
    ]
    if not targets:
        return [() for _ in asked]
    index = torch.tensor(cells, device=logits.device)
    found = iter(scores_in(log_softmax(logits[index].float(), dim=-1), targets))
    return [tuple(islice(found, len(one.targets))) for one in asked]


def _accept(row: Row, draft: Ids, best: Sequence[int]) -> bool:
    """Let a row take the likeliest ids as long as the draft says the same; whether it goes on from its newest one."""
    for token, drafted in zip(best, (*draft, None), strict=True):
        if not row.take(token):
            return False
        if token != drafted:
            break
    return True
