"""What a model answers: lazy, cached, batched; as it is now, or as it was before any patch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from kedit_core.evaluation.metrics import prefetch
from kedit_core.evaluation.model_reading import ModelReading, Scored
from kedit_core.evaluation.protocols import Protocol
from kedit_core.evaluation.questions import SCORE, AnswerKind, Continuation, Questions, TargetTokens, read_all
from kedit_core.evaluation.readers import Reader, Readers
from kedit_core.evaluation.text import SENTENCE, StopRule
from kedit_core.forward import Side, TokenBoundary, TopK
from kedit_core.models import AdapterRegistry, ModelView
from kedit_core.requests import EditRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kedit_core.patches import PatchStack

Item = TypeVar("Item", bound=Hashable)
Found = TypeVar("Found")


class Answers:
    """Reads answers from a model, each at most once.

    Ask for many at a time: what is not known yet is read in batches of prompts of similar length; and for different
    things about a prompt in one :meth:`at_once` block, where it is read once for all of them. Results do not depend on
    batches, their order, the padding side or such blocks (strings are equal, log-probabilities within rounding).

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
        own = Reader(model=model, view=view, boundary=boundary, scope=scope)
        self._stack = stack
        self._base = base
        # the base answers by itself, whatever routes there are
        readers = Readers(own, None if base else stack, adapters)
        self._model = ModelReading(readers, stack, base, batch_tokens, padding_side)
        self._known: dict[tuple[Hashable, Hashable], Any] = {}
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
            return [rule.cut(each.text) for each in self._model.continued(missing, max_new_tokens, stop=rule.decided)]

        return self._cached(AnswerKind(rule, max_new_tokens), prompts, read, "")

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
            drawn = self._model.continued(prompts, max_new_tokens, stop=stop, sampler=sampler, ignore_eos=ignore_eos)
            return [each.text for each in drawn]

        def read(missing: list[str]) -> list[str]:
            return [each.text for each in self._model.continued(missing, max_new_tokens, ignore_eos=ignore_eos)]

        return self._cached(("raw", max_new_tokens, ignore_eos), prompts, read, "")

    def continuations(self, prompts: Sequence[str], max_new_tokens: int = 50) -> list[Continuation]:
        """What :meth:`raw_generate` gives, with its tokens; those of another model (a route's) are its tokenizer's."""

        def read(missing: list[str]) -> list[Continuation]:
            return self._model.continued(missing, max_new_tokens)

        return self._cached(("continuation", max_new_tokens), prompts, read, Continuation(text="", tokens=()))

    def sample(self, prompts: Sequence[str], *, total_tokens: int, k: int = 5, seed: int = 0) -> list[str]:
        """Continuations drawn from the ``k`` likeliest tokens, until prompt and continuation are ``total_tokens`` long.

        End-of-sequence tokens are written past. A prompt's sample follows from its text and ``seed`` alone. Raises
        InputError for a prompt that leaves no room in the model's positions.
        """

        def read(missing: list[str]) -> list[str]:
            drawn = self._model.continued(missing, total_tokens, sampled=(k, seed), ignore_eos=True)
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

        blank = TargetTokens(predicted=(), target=(), text="")
        return self._cached("written", [(prompt, target) for prompt, target in pairs], self._model.written, blank)

    def target_divergences(self, pairs: Sequence[tuple[str, str]]) -> list[Tensor | None]:
        """For each (prompt, target) how far the model has moved from the base at every target token.

        That is ``KL(base || now)`` of the next-token distributions, ``[T]`` float32 nats on the CPU; zeros where this
        reads the base. None where a route leads to a model with other tokens, so that nothing can be compared.

        Base and edited model are read in turn, batch by batch, so no more than two distributions of one batch are ever
        held. While :meth:`noting`, nothing is noted: this is read with the patches themselves on the model only.
        """
        if self._noted is not None:
            return [None] * len(pairs)
        found = self._cached("divergence", [(prompt, target) for prompt, target in pairs], self._model.diverged, None)
        return [None if each is None else each.clone() for each in found]

    @contextmanager
    def noting(self) -> Iterator[Questions]:
        """For the length of a block nothing is read: questions are noted down, and answers are blank.

        How the questions of many edits are found, to be read together (:func:`kedit_core.evaluation.read_together`).
        """
        before, self._noted = self._noted, Questions(self._model.prompts)
        try:
            yield self._noted
        finally:
            self._noted = before

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For the length of a block questions are noted, and answers are blank; at its end they are read, in few
        batches, no prompt twice for its answer and its targets' scores. Asked again, they are answered at once."""
        if self._noted is not None:
            yield
            return
        with self.noting() as questions:
            yield
        self._follow()
        (found,) = read_all([questions.without(self._known)], lambda _: nullcontext())
        self._known.update(found)

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
        self._follow()
        missing = list(dict.fromkeys(item for item in items if (kind, item) not in self._known))
        if missing:
            found = read(missing)
            self._known.update({(kind, item): one for item, one in zip(missing, found, strict=True)})
        return [self._known[kind, item] for item in items]

    def _follow(self) -> None:
        """Forget what was read through other patches."""
        state = self._state()
        if state != self._known_of:
            self._known, self._known_of = {}, state

    def _state(self) -> Hashable:
        """What the answers depend on beside the question: the patches that are read through, and how they are on."""
        if self._base or self._stack is None:
            return ()
        return self._stack.suspended_now, *((entry.patch.id, entry.way) for entry in self._stack.patches)

    def _scored(self, pairs: Sequence[tuple[str, str]]) -> list[Scored]:
        blank = (torch.empty(0), TargetTokens(predicted=(), target=(), text=""))
        return self._cached(SCORE, [(prompt, target) for prompt, target in pairs], self._model.scored, blank)
