"""What a model answers: lazy, cached, batched; as it is now, or as it was before any patch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.evaluation.metrics import prefetch
from kedit_core.evaluation.protocols import Protocol
from kedit_core.evaluation.questions import Continuation, Questions, TargetTokens
from kedit_core.evaluation.text import SENTENCE, StopRule
from kedit_core.forward import (
    ForwardTools,
    PairScore,
    PromptScope,
    Side,
    TokenBoundary,
    TopK,
    generate_ids,
    score_pairs,
)
from kedit_core.forward.divergence import pair_divergences
from kedit_core.models import AdapterRegistry, ModelView
from kedit_core.patches import Route, RoutedModel
from kedit_core.requests import EditRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kedit_core.patches import PatchStack

Item = TypeVar("Item", bound=Hashable)
Found = TypeVar("Found")


@frozen(eq=False, kw_only=True)
class _Reader:
    """One model that answers, with what is needed to run it."""

    model: PreTrainedModel
    view: ModelView
    boundary: TokenBoundary
    scope: PromptScope | None = None

    @property
    def tools(self) -> ForwardTools:
        return ForwardTools(self.model, self.view, self.boundary, scope=self.scope)


class Answers:
    """Reads answers from a model, each at most once.

    Ask for many at a time: what is not known yet is read in batches of prompts of similar length. Results do not
    depend on batches, their order, or the padding side (strings are equal, log-probabilities within rounding).

    With ``base`` it reads under ``stack.suspended()``, so the unedited model's answers can be had at any time, also
    while patches are on. Without, it reads the model as it is now, routers too: each prompt goes to the model its route
    names, with the route's context before it, and only the continuation is read. These answers are forgotten as soon as
    the stack holds other patches, so one object may be kept while patches come and go; a model changed past the stack,
    or under ``stack.provisional()``, needs a new one.

    Args:
        model, view, boundary: the model, its parts and its tokenizer.
        stack: the patches on the model; None when there are none.
        base: read the model without its patches.
        batch_tokens: a batch holds at most so many tokens, new ones included (a longer prompt stands alone).
        padding_side: where batches are padded.
        adapters: for the models that routes name; the built-in ones when None.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        view: ModelView,
        boundary: TokenBoundary,
        stack: PatchStack | None = None,
        *,
        base: bool = False,
        batch_tokens: int = 8192,
        padding_side: Side = "left",
        adapters: AdapterRegistry | None = None,
    ) -> None:
        scope = stack.scope if stack is not None else None
        self._own = _Reader(model=model, view=view, boundary=boundary, scope=scope)
        self._stack = stack
        self._base = base
        self._batch_tokens = batch_tokens
        self._padding_side = padding_side
        self._adapters = adapters
        self._others: dict[int, tuple[RoutedModel, _Reader]] = {}
        self._known: dict[Hashable, Any] = {}
        self._known_of: Hashable = None
        self._noted: Questions | None = None

    @property
    def is_base(self) -> bool:
        """Whether it reads the model without its patches."""
        return self._base

    def generate(self, prompts: Sequence[str], *, rule: StopRule = SENTENCE, max_new_tokens: int = 50) -> list[str]:
        """Greedy answers, cut where ``rule`` says they end, stripped (specs: evaluation, section 2d).

        Raises InputError for an empty prompt, or one that leaves no room for the new tokens.
        """

        def read(missing: list[str]) -> list[str]:
            return [rule.cut(each.text) for each in self._continued(missing, max_new_tokens, stop=rule.decided)]

        return self._cached(("answer", rule, max_new_tokens), prompts, read, "")

    def raw_generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 50,
        *,
        stop: Callable[[str], bool] | None = None,
        sampler: TopK | None = None,
        ignore_eos: bool = False,
    ) -> list[str]:
        """Continuations as the model writes them, leading space and all; kept only when greedy and without ``stop``.

        ``stop`` is told each row's continuation after every token; ``sampler`` draws from its own generator.
        """
        if stop is not None or sampler is not None:
            drawn = self._continued(prompts, max_new_tokens, stop=stop, sampler=sampler, ignore_eos=ignore_eos)
            return [each.text for each in drawn]

        def read(missing: list[str]) -> list[str]:
            return [each.text for each in self._continued(missing, max_new_tokens, ignore_eos=ignore_eos)]

        return self._cached(("raw", max_new_tokens, ignore_eos), prompts, read, "")

    def continuations(self, prompts: Sequence[str], max_new_tokens: int = 50) -> list[Continuation]:
        """What :meth:`raw_generate` gives, with its tokens; those of another model (a route's) are its tokenizer's."""

        def read(missing: list[str]) -> list[Continuation]:
            return self._continued(missing, max_new_tokens)

        return self._cached(("continuation", max_new_tokens), prompts, read, Continuation(text="", tokens=()))

    def sample(self, prompts: Sequence[str], *, total_tokens: int, k: int = 5, seed: int = 0) -> list[str]:
        """Continuations drawn from the ``k`` likeliest tokens, until prompt and continuation are ``total_tokens`` long.

        End-of-sequence tokens are written past. A prompt's sample follows from its text and ``seed`` alone. Raises
        InputError for a prompt that leaves no room in the model's positions.
        """

        def read(missing: list[str]) -> list[str]:
            drawn = self._continued(missing, total_tokens, sampled=(k, seed), ignore_eos=True)
            return [each.text for each in drawn]

        return self._cached(("sample", total_tokens, k, seed), prompts, read, "")

    def target_logprobs(self, pairs: Sequence[tuple[str, str]]) -> list[Tensor]:
        """For each (prompt, target) the log-probability of every target token, ``[T]`` float32 on the CPU."""
        return [logprobs.clone() for logprobs, _ in self._scored(pairs)]

    def target_tokens(self, pairs: Sequence[tuple[str, str]]) -> list[TargetTokens]:
        """For each (prompt, target) the argmax before every target token, and the target's tokens."""
        return [tokens for _, tokens in self._scored(pairs)]

    def written_tokens(self, pairs: Sequence[tuple[str, str]]) -> list[TargetTokens]:
        """For each (prompt, target) as many tokens as the target has, written greedily, and the target's tokens."""

        def read(missing: list[tuple[str, str]]) -> list[TargetTokens]:
            found: dict[int, TargetTokens] = {}
            with self._reading():
                for reader, rows in self._readers([prompt for prompt, _ in missing]):
                    ready = [reader.boundary.pair(text, missing[index][1]) for index, text in rows]
                    new_ids = generate_ids(
                        reader.model,
                        reader.view,
                        reader.boundary,
                        [pair.prompt_ids for pair in ready],
                        max(len(pair.target_ids) for pair in ready),
                        scope=reader.scope,
                        batch_tokens=self._batch_tokens,
                        padding_side=self._padding_side,
                        ignore_eos=True,
                    )
                    for (index, _), pair, new in zip(rows, ready, new_ids, strict=True):
                        cut = tuple(new[: len(pair.target_ids)])
                        found[index] = TargetTokens(
                            predicted=cut, target=tuple(pair.target_ids), text=reader.boundary.decode(cut)
                        )
            return [found[index] for index in range(len(missing))]

        blank = TargetTokens(predicted=(), target=(), text="")
        return self._cached("written", [(prompt, target) for prompt, target in pairs], read, blank)

    def target_divergences(self, pairs: Sequence[tuple[str, str]]) -> list[Tensor | None]:
        """For each (prompt, target) how far the model has moved from the base at every target token.

        That is ``KL(base || now)`` of the next-token distributions, ``[T]`` float32 nats on the CPU; zeros where this
        reads the base. None where a route leads to a model with other tokens, so that nothing can be compared.

        Base and edited model are read in turn, batch by batch, so no more than two distributions of one batch are ever
        held. While :meth:`noting`, nothing is noted: this is read with the patches themselves on the model only.
        """
        if self._noted is not None:
            return [None] * len(pairs)
        found = self._cached("divergence", [(prompt, target) for prompt, target in pairs], self._diverged, None)
        return [None if each is None else each.clone() for each in found]

    @contextmanager
    def noting(self) -> Iterator[Questions]:
        """For the length of a block nothing is read: questions are noted down, and answers are blank.

        How the questions of many edits are found, to be read together (:func:`kedit_core.evaluation.read_together`).
        """
        before, self._noted = self._noted, Questions()
        try:
            yield self._noted
        finally:
            self._noted = before

    def supply(self, known: Mapping[tuple[Hashable, Hashable], Any]) -> None:
        """Answers of the model as it is now that were read elsewhere: (kind, question) -> what was found."""
        self._known, self._known_of = dict(known), self._state()

    def prefetch(self, requests: Sequence[EditRequest], protocols: Iterable[Protocol | str]) -> None:
        """Read all that the core's metrics will ask about these requests, in few batches."""
        prefetch(self, requests, protocols)

    def forget(self) -> None:
        """Drop everything that was read."""
        self._known.clear()

    # ------------------------------------------------------------------ inside
    def _cached(
        self, kind: Hashable, items: Sequence[Item], read: Callable[[list[Item]], Sequence[Found]], blank: Found
    ) -> list[Found]:
        if self._noted is not None:
            self._noted.note(kind, read, items)
            return [blank] * len(items)
        state = self._state()
        if state != self._known_of:
            self._known, self._known_of = {}, state
        missing = list(dict.fromkeys(item for item in items if (kind, item) not in self._known))
        if missing:
            found = read(missing)
            self._known.update({(kind, item): one for item, one in zip(missing, found, strict=True)})
        return [self._known[kind, item] for item in items]

    def _state(self) -> Hashable:
        """What the answers depend on beside the question: the patches that are read through, and how they are on."""
        if self._base or self._stack is None:
            return ()
        return self._stack.suspended_now, *((entry.patch.id, entry.way) for entry in self._stack.patches)

    def _reading(self) -> AbstractContextManager[Any]:
        return self._stack.suspended() if self._base and self._stack is not None else nullcontext()

    def _continued(
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
        with self._reading():
            for reader, rows in self._readers(prompts):
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
                    batch_tokens=self._batch_tokens,
                    padding_side=self._padding_side,
                    sampler=sampler,
                    ignore_eos=ignore_eos,
                )
                for (index, _), before, new, most in zip(rows, ids, new_ids, room, strict=True):
                    cut = tuple(new[: max(0, most)])
                    found[index] = Continuation(text=reader.boundary.continuation(before, cut), tokens=cut)
        return [found[index] for index in range(len(prompts))]

    def _scored(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[Tensor, TargetTokens]]:
        def read(missing: list[tuple[str, str]]) -> list[tuple[Tensor, TargetTokens]]:
            scores: dict[int, tuple[Tensor, TargetTokens]] = {}
            with self._reading():
                for reader, rows in self._readers([prompt for prompt, _ in missing]):
                    found = score_pairs(
                        reader.model,
                        reader.view,
                        reader.boundary,
                        [(text, missing[index][1]) for index, text in rows],
                        batch_tokens=self._batch_tokens,
                        padding_side=self._padding_side,
                        scope=reader.scope,
                    )
                    for (index, _), score in zip(rows, found, strict=True):
                        scores[index] = (score.logprobs, _target_tokens(score, reader.boundary))
            return [scores[index] for index in range(len(missing))]

        blank = (torch.empty(0), TargetTokens(predicted=(), target=(), text=""))
        return self._cached("score", [(prompt, target) for prompt, target in pairs], read, blank)

    def _diverged(self, pairs: list[tuple[str, str]]) -> list[Tensor | None]:
        own = self._own
        found: dict[int, Tensor] = {}
        if self._base or self._stack is None:
            return [torch.zeros(len(own.boundary.pair(*pair).target_ids)) for pair in pairs]
        for reader, rows in self._readers([prompt for prompt, _ in pairs]):
            both = [(own.boundary.pair(*pairs[i]), reader.boundary.pair(text, pairs[i][1])) for i, text in rows]
            comparable = _same_tokens(own, reader)
            alike = [i for i, (a, b) in enumerate(both) if comparable and a.target_ids == b.target_ids]
            divergences = pair_divergences(
                own.tools,
                reader.tools,
                [both[i] for i in alike],
                showing_before=self._stack.suspended,
                batch_tokens=self._batch_tokens,
                padding_side=self._padding_side,
            )
            found.update({rows[i][0]: each for i, each in zip(alike, divergences, strict=True)})
        return [found.get(index) for index in range(len(pairs))]

    def _readers(self, prompts: Sequence[str]) -> Iterator[tuple[_Reader, list[tuple[int, str]]]]:
        """Each model that answers, with (index, text) of its prompts, their routes' contexts before them."""
        routed = self._stack is not None and not self._base and len(prompts) > 0
        routes: Sequence[Route] = self._stack.route(prompts) if routed and self._stack else [Route()] * len(prompts)
        groups: dict[int, tuple[_Reader, list[tuple[int, str]]]] = {}
        for index, (prompt, route) in enumerate(zip(prompts, routes, strict=True)):
            reader = self._own if route.model is None else self._reader_of(route.model)
            groups.setdefault(id(reader), (reader, []))[1].append((index, route.context + prompt))
        yield from groups.values()

    def _reader_of(self, routed: RoutedModel) -> _Reader:
        # the routed model is kept beside its reader, so that its id stays its own
        if id(routed.model) not in self._others:
            view = self._registry().for_model(routed.model)
            boundary = TokenBoundary(routed.tokenizer, encoder_decoder=view.is_encoder_decoder)
            reader = _Reader(model=view.model, view=view, boundary=boundary)
            self._others[id(routed.model)] = (routed, reader)
        return self._others[id(routed.model)][1]

    def _registry(self) -> AdapterRegistry:
        if self._adapters is None:
            from kedit_core.models.builtin import ADAPTERS

            self._adapters = AdapterRegistry(ADAPTERS)
        return self._adapters


def _same_tokens(own: _Reader, other: _Reader) -> bool:
    """Whether two models mean the same by the same ids."""
    if own is other:
        return True
    sizes = {getattr(each.model.config, "vocab_size", None) for each in (own, other)}
    return len(sizes) == 1 and own.boundary.tokenizer.get_vocab() == other.boundary.tokenizer.get_vocab()


def _own_seed(text: str, seed: int) -> int:
    """A seed of 62 bits that follows from a text and a seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8], "big") >> 2


def _target_tokens(score: PairScore, boundary: TokenBoundary) -> TargetTokens:
    predicted = tuple(int(i) for i in score.predicted)
    return TargetTokens(predicted=predicted, target=tuple(score.target_ids), text=boundary.decode(predicted))
