"""Reading answers from models: each kind of question in batches, nothing remembered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.evaluation.questions import AnswerKind, Continuation, PromptQuestions, TargetTokens
from kedit_core.evaluation.readers import Readers
from kedit_core.forward import (
    Asked,
    PairScore,
    Side,
    TokenBoundary,
    TopK,
    generate_ids,
    read_prompts,
    score_pairs,
)
from kedit_core.forward.divergence import pair_divergences

if TYPE_CHECKING:
    from kedit_core.patches import PatchStack

Scored = tuple[Tensor, TargetTokens]


@frozen(eq=False)
class ModelReading:
    """Reads from the models that answer.

    Attributes:
        readers: which they are.
        stack: the patches on the model; None when there are none.
        base: read the model without its patches.
        batch_tokens, padding_side: of batches.
    """

    readers: Readers
    stack: PatchStack | None
    base: bool
    batch_tokens: int
    padding_side: Side

    def continued(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        *,
        stop: Callable[[str], bool] | None = None,
        sampler: TopK | None = None,
        sampled: tuple[int, int] | None = None,
        ignore_eos: bool = False,
    ) -> list[Continuation]:
        """``sampled`` (k, seed): every prompt draws by itself, and ``max_new_tokens`` counts the prompt, too."""
        found: dict[int, Continuation] = {}
        with self._shown():
            for reader, rows in self.readers.of(prompts):
                ids = [reader.boundary.prompt(text).ids for _, text in rows]
                room = [max_new_tokens - len(each) if sampled else max_new_tokens for each in ids]
                if sampled is not None:
                    k, seed = sampled
                    sampler = TopK(k, seeds=[_own_seed(text, seed) for _, text in rows])
                new_ids = generate_ids(
                    reader.model,
                    reader.view,
                    reader.boundary,
                    ids,
                    max(0, *room),
                    stop=stop,
                    scope=reader.scope,
                    batch_tokens=self.batch_tokens,
                    padding_side=self.padding_side,
                    sampler=sampler,
                    ignore_eos=ignore_eos,
                )
                for (index, _), before, new, most in zip(rows, ids, new_ids, room, strict=True):
                    cut = tuple(new[: max(0, most)])
                    found[index] = Continuation(text=reader.boundary.continuation(before, cut), tokens=cut)
        return [found[index] for index in range(len(prompts))]

    def scored(self, pairs: Sequence[tuple[str, str]]) -> list[Scored]:
        """For each (prompt, target) the log-probability of every target token, and the tokens."""
        found: dict[int, Scored] = {}
        with self._shown():
            for reader, rows in self.readers.of([prompt for prompt, _ in pairs]):
                scores = score_pairs(
                    reader.model,
                    reader.view,
                    reader.boundary,
                    [(text, pairs[index][1]) for index, text in rows],
                    batch_tokens=self.batch_tokens,
                    padding_side=self.padding_side,
                    scope=reader.scope,
                )
                for (index, _), score in zip(rows, scores, strict=True):
                    found[index] = _scored(score, reader.boundary)
        return [found[index] for index in range(len(pairs))]

    def prompts(self, kind: AnswerKind | None, asked: Sequence[PromptQuestions]) -> list[list[Any]]:
        """All that is asked of each prompt, which is read once: the targets' scores, as :meth:`scored` gives them, and
        then the answer of ``kind``, cut and stripped, where it is asked."""
        found: dict[int, list[Any]] = {}
        stop, most = (None, 0) if kind is None else (kind.rule.decided, kind.max_new_tokens)
        with self._shown():
            for reader, rows in self.readers.of([one.prompt for one in asked]):
                boundary = reader.boundary
                pairs = [[boundary.pair(text, target) for target in asked[index].targets] for index, text in rows]
                read = read_prompts(
                    reader.model,
                    reader.view,
                    boundary,
                    [
                        Asked(of_it[0].prompt_ids, tuple(pair.target_ids for pair in of_it), asked[index].answered)
                        for (index, _), of_it in zip(rows, pairs, strict=True)
                    ],
                    most,
                    stop=stop,
                    scope=reader.scope,
                    batch_tokens=self.batch_tokens,
                    padding_side=self.padding_side,
                    members=[index for index, _ in rows],
                )
                for (index, _), of_it, one in zip(rows, pairs, read, strict=True):
                    found[index] = [_scored(score, boundary) for score in one.scores]
                    if kind is not None and asked[index].answered:
                        found[index].append(kind.rule.cut(boundary.continuation(of_it[0].prompt_ids, one.new)))
        return [found[index] for index in range(len(asked))]

    def written(self, pairs: Sequence[tuple[str, str]]) -> list[TargetTokens]:
        """For each (prompt, target) as many tokens as the target has, written greedily."""
        found: dict[int, TargetTokens] = {}
        with self._shown():
            for reader, rows in self.readers.of([prompt for prompt, _ in pairs]):
                ready = [reader.boundary.pair(text, pairs[index][1]) for index, text in rows]
                new_ids = generate_ids(
                    reader.model,
                    reader.view,
                    reader.boundary,
                    [pair.prompt_ids for pair in ready],
                    max(len(pair.target_ids) for pair in ready),
                    scope=reader.scope,
                    batch_tokens=self.batch_tokens,
                    padding_side=self.padding_side,
                    ignore_eos=True,
                )
                for (index, _), pair, new in zip(rows, ready, new_ids, strict=True):
                    cut = tuple(new[: len(pair.target_ids)])
                    found[index] = TargetTokens(
                        predicted=cut, target=tuple(pair.target_ids), text=reader.boundary.decode(cut)
                    )
        return [found[index] for index in range(len(pairs))]

    def diverged(self, pairs: Sequence[tuple[str, str]]) -> list[Tensor | None]:
        """For each (prompt, target) how far the model has moved from the base: :meth:`Answers.target_divergences`."""
        own = self.readers.own
        found: dict[int, Tensor] = {}
        if self.base or self.stack is None:
            return [torch.zeros(len(own.boundary.pair(*pair).target_ids)) for pair in pairs]
        for reader, rows in self.readers.of([prompt for prompt, _ in pairs]):
            both = [(own.boundary.pair(*pairs[i]), reader.boundary.pair(text, pairs[i][1])) for i, text in rows]
            comparable = own.same_tokens(reader)
            alike = [i for i, (a, b) in enumerate(both) if comparable and a.target_ids == b.target_ids]
            divergences = pair_divergences(
                own.tools,
                reader.tools,
                [both[i] for i in alike],
                showing_before=self.stack.suspended,
                batch_tokens=self.batch_tokens,
                padding_side=self.padding_side,
            )
            found.update({rows[i][0]: each for i, each in zip(alike, divergences, strict=True)})
        return [found.get(index) for index in range(len(pairs))]

    def _shown(self) -> AbstractContextManager[Any]:
        return self.stack.suspended() if self.base and self.stack is not None else nullcontext()


def _own_seed(text: str, seed: int) -> int:
    """A seed of 62 bits that follows from a text and a seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8], "big") >> 2


def _scored(score: PairScore, boundary: TokenBoundary) -> Scored:
    predicted = tuple(int(i) for i in score.predicted)
    tokens = TargetTokens(predicted=predicted, target=tuple(score.target_ids), text=boundary.decode(predicted))
    return score.logprobs, tokens
