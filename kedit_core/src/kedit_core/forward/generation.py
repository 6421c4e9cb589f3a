"""Writing on from prompts: greedy or top-k, batched, with a KV cache.

A decoding loop of our own, because transformers' ``generate`` samples with the global random state and knows nothing of
prompt scopes. The same prompt gets the same ids whatever batch it is in, in whatever order, padded on whatever side (up
to exact ties of logits).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from attrs import define, evolve, frozen
from torch import Tensor

from kedit_core.errors import InputError
from kedit_core.forward.batch import Batch, Side, buckets, collate
from kedit_core.forward.decoding import CausalDecoder, Decoder, Seq2SeqDecoder
from kedit_core.forward.state import evaluating, first_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kedit_core.forward.scope import PromptScope
    from kedit_core.forward.tokens import TokenBoundary
    from kedit_core.models import ModelView


@frozen(eq=False)
class TopK:
    """Sample from the ``k`` likeliest tokens, their probabilities renormalised; no temperature.

    Every prompt gets its own seed, from ``seeds`` or else from ``generator`` (in the prompts' order), so samples do not
    depend on batches.
    """

    k: int
    generator: torch.Generator | None = None
    seeds: Sequence[int] | None = None

    def each(self, count: int) -> Sequence[int]:
        """A seed for each of ``count`` prompts. Raises InputError when there are not as many."""
        if self.seeds is not None:
            if len(self.seeds) != count:
                raise InputError(f"there are {len(self.seeds)} seeds for {count} prompts; give one for each")
            return self.seeds
        if self.generator is None:
            raise InputError("a sampler needs a generator, or a seed for each prompt")
        drawn: list[int] = torch.randint(
            2**62, (count,), generator=self.generator, device=self.generator.device
        ).tolist()
        return drawn


def generate_ids(
    model: PreTrainedModel,
    view: ModelView,
    boundary: TokenBoundary,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    stop: Callable[[str], bool] | None = None,
    scope: PromptScope | None = None,
    batch_tokens: int = 8192,
    padding_side: Side = "left",
    sampler: TopK | None = None,
    ignore_eos: bool = False,
    members: Sequence[int] | None = None,
) -> list[list[int]]:
    """Continue every prompt; gives the new ids of each, without the end-of-sequence token.

    A row ends at an end-of-sequence token (of the generation config or the config), when ``stop`` says so, after
    ``max_new_tokens``, or when the model's positions are used up; rows that have ended leave the batch at once.

    Args:
        prompts: token ids with special tokens, as ``boundary.prompt(text).ids``.
        stop: told the decoded continuation of a row after each token; True ends the row (that token is kept).
        scope: told about prompts and phases; needed when module operations are on the model.
        batch_tokens: prompts of similar length run together up to this many tokens, new ones included.
        sampler: greedy when None.
        ignore_eos: write on past end-of-sequence tokens (they are then part of the result).
        members: which of the caller's texts each prompt is, as the scope is told; its place in ``prompts`` when None.

    Memory: the KV cache of one batch, that is, of ``batch_tokens`` tokens, and one row of logits per prompt in it.

    Raises:
        InputError: an empty prompt, or one longer than the model's positions.
    """
    if max_new_tokens < 0 or any(len(prompt) == 0 for prompt in prompts):
        raise InputError("generation needs prompts of at least one token, and max_new_tokens >= 0")
    limit = view.row_limit
    longest = max((len(prompt) for prompt in prompts), default=0)
    if limit is not None and longest > limit:
        raise InputError(f"a prompt of {longest} tokens exceeds the model's {limit} positions; shorten it")
    results: list[list[int]] = [[] for _ in prompts]
    if max_new_tokens == 0 or not prompts:
        return results
    seeds = None if sampler is None else sampler.each(len(prompts))
    ends = frozenset() if ignore_eos else end_ids(model)
    with torch.no_grad(), evaluating(model):
        for group in _groups([len(prompt) for prompt in prompts], max_new_tokens, limit, batch_tokens):
            batch = collate([prompts[i] for i in group], boundary.pad_id, padding_side, first_device(model))
            batch = evolve(batch, members=torch.tensor([i if members is None else members[i] for i in group]))
            # the last token is not fed again, so it needs no position
            room = max_new_tokens if limit is None else min(max_new_tokens, limit - batch.width + 1)
            ending = Ending(boundary, room, ends, stop)
            rows = [ending.row(prompts[i], results[i], None if seeds is None else seeds[i]) for i in group]
            decoder = (Seq2SeqDecoder if view.is_encoder_decoder else CausalDecoder)(model, view, batch)
            with told(scope, batch):
                write_on(decoder, rows, decoder.prefill(), scope, sampler)
    return results


def _groups(lengths: Sequence[int], new: int, limit: int | None, batch_tokens: int) -> list[list[int]]:
    """Batches of prompts; those that may run out of positions only with others of the very same length, so that no
    row's answer depends on the others, nor a column lies beyond the positions."""
    roomy = [i for i, length in enumerate(lengths) if limit is None or length + new - 1 <= limit]
    tight: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        if limit is not None and length + new - 1 > limit:
            tight.setdefault(length, []).append(i)
    groups = []
    for members in (roomy, *tight.values()):
        chosen = buckets([lengths[i] + new for i in members], batch_tokens)
        groups += [[members[k] for k in group] for group in chosen]
    return groups


def end_ids(model: PreTrainedModel) -> frozenset[int]:
    """The model's end-of-sequence ids: of its generation config, else of its config; may be none."""
    for config in (getattr(model, "generation_config", None), model.config):
        found = getattr(config, "eos_token_id", None)
        if found is not None:
            return frozenset(found if isinstance(found, (list, tuple)) else [found])
    return frozenset()


@frozen(eq=False)
class Ending:
    """When a row has ended.

    Attributes:
        room: new tokens it may have.
        ends: ids that end it, and are not part of it.
        stop: told its text after each token; True ends it.
    """

    boundary: TokenBoundary
    room: int
    ends: frozenset[int]
    stop: Callable[[str], bool] | None = None

    def row(self, prompt: Sequence[int], new: list[int], seed: int | None = None) -> Row:
        """A row at its beginning; what it writes goes to ``new``."""
        before = None if self.stop is None else self.boundary.decode(prompt)
        generator = None if seed is None else torch.Generator().manual_seed(int(seed))
        return Row(self, prompt, new, before, generator)


@define(eq=False)
class Row:
    """A prompt that is being written on."""

    ending: Ending
    prompt: Sequence[int]
    new: list[int]
    before: str | None = None
    generator: torch.Generator | None = None

    def take(self, token: int) -> bool:
        """Add a token, unless it is one that ends the row; whether more may follow."""
        ending = self.ending
        if token in ending.ends:
            return False
        self.new.append(token)
        if ending.stop is not None and ending.stop(ending.boundary.continuation(self.prompt, self.new, self.before)):
            return False
        return len(self.new) < ending.room


@contextmanager
def told(scope: PromptScope | None, batch: Batch) -> Iterator[None]:
    """Tell the scope, if there is one, where the prompts of a batch end and which texts its rows are."""
    if scope is None:
        yield
    else:
        ends = batch.starts + batch.lengths - 1 if batch.prompt_ends is None else batch.prompt_ends
        with scope.running(ends, batch.members):
            yield


def write_on(
    decoder: Decoder, rows: Sequence[Row], logits: Tensor, scope: PromptScope | None, sampler: TopK | None = None
) -> None:
    """Write all rows to their end, given the logits after what each has; rows that have ended leave at once."""
    while True:
        tokens = _choose(logits, rows, sampler)
        going = [i for i, (row, token) in enumerate(zip(rows, tokens, strict=True)) if row.take(token)]
        if not going:
            return
        if len(going) < len(rows):
            index = torch.tensor(going)
            decoder.select(index)
            if scope is not None:
                scope.select_rows(index)
            rows = [rows[i] for i in going]
        logits = next_logits(decoder, rows, scope)


def next_logits(decoder: Decoder, rows: Sequence[Row], scope: PromptScope | None) -> Tensor:
    """Logits after each row's newest token, which is fed."""
    if scope is not None and scope.phase == "prefill":
        scope.decoding()
    return decoder.step([row.new[-1] for row in rows])


def _choose(logits: Tensor, rows: Sequence[Row], sampler: TopK | None) -> list[int]:
    if sampler is None:
        return [int(i) for i in logits.argmax(dim=-1).tolist()]
    values, tokens = logits.float().topk(min(sampler.k, logits.shape[-1]), dim=-1)
    shares = torch.softmax(values.double(), dim=-1).cpu()
    chosen = [int(torch.multinomial(p, 1, generator=row.generator)) for p, row in zip(shares, rows, strict=True)]
    return [int(tokens[i, c]) for i, c in enumerate(chosen)]
