"""Writing on from prompts: greedy or top-k, batched, with a KV cache.

A decoding loop of our own, because transformers' ``generate`` samples with the global random state and knows nothing of
prompt scopes. The same prompt gets the same ids whatever batch it is in, in whatever order, padded on whatever side (up
to exact ties of logits).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, evolve, frozen
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from kedit_core.errors import InputError
from kedit_core.forward.batch import Batch, Side, buckets, collate
from kedit_core.forward.run import decoder_start, takes
from kedit_core.forward.state import Taps, evaluating, first_device, picked, with_input

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
            rows = [_Row(prompts[i], results[i]) for i in group]
            for row, i in zip(rows, group, strict=True):
                if stop is not None:
                    row.before = boundary.decode(row.prompt)
                if seeds is not None:
                    row.generator = torch.Generator().manual_seed(int(seeds[i]))
            pad = boundary.pad_id
            batch = collate([row.prompt for row in rows], pad, padding_side, first_device(model))
            batch = evolve(batch, members=torch.tensor(group))
            decoder: _Decoder = (_Seq2Seq if view.is_encoder_decoder else _Causal)(model, view, batch)
            # the last token is not fed again, so it needs no position
            room = max_new_tokens if limit is None else min(max_new_tokens, limit - batch.width + 1)
            with _told(scope, batch):
                _decode(decoder, rows, room, ends, stop, boundary, scope, sampler)
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


@define(eq=False)
class _Row:
    prompt: Sequence[int]
    new: list[int]
    before: str | None = None
    generator: torch.Generator | None = None


@contextmanager
def _told(scope: PromptScope | None, batch: Batch) -> Iterator[None]:
    if scope is None:
        yield
    else:
        with scope.running(batch.starts + batch.lengths - 1, batch.members):
            yield


def _decode(
    decoder: _Decoder,
    rows: list[_Row],
    max_new_tokens: int,
    ends: frozenset[int],
    stop: Callable[[str], bool] | None,
    boundary: TokenBoundary,
    scope: PromptScope | None,
    sampler: TopK | None,
) -> None:
    logits = decoder.prefill()
    for step in range(max_new_tokens):
        tokens = _choose(logits, rows, sampler)
        going: list[int] = []
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if token in ends:
                continue
            row.new.append(token)
            if stop is None or not stop(boundary.continuation(row.prompt, row.new, row.before)):
                going.append(i)
        if not going or step + 1 == max_new_tokens:
            return
        if len(going) < len(rows):
            index = torch.tensor(going)
            decoder.select(index)
            if scope is not None:
                scope.select_rows(index)
            rows = [rows[i] for i in going]
        if scope is not None and step == 0:
            scope.decoding()
        logits = decoder.step([row.new[-1] for row in rows])


def _choose(logits: Tensor, rows: Sequence[_Row], sampler: TopK | None) -> list[int]:
    if sampler is None:
        return [int(i) for i in logits.argmax(dim=-1).tolist()]
    values, tokens = logits.float().topk(min(sampler.k, logits.shape[-1]), dim=-1)
    shares = torch.softmax(values.double(), dim=-1).cpu()
    chosen = [int(torch.multinomial(p, 1, generator=row.generator)) for p, row in zip(shares, rows, strict=True)]
    return [int(tokens[i, c]) for i, c in enumerate(chosen)]


class _Decoder(ABC):
    """One batch on its way: its cache and mask. ``prefill`` and ``step`` give logits ``[rows, vocabulary]``."""

    def __init__(self, model: PreTrainedModel, view: ModelView, batch: Batch) -> None:
        self.model = model
        self.view = view
        self.batch = batch
        self.device = batch.input_ids.device

    @abstractmethod
    def prefill(self) -> Tensor: ...

    @abstractmethod
    def step(self, tokens: Sequence[int]) -> Tensor: ...

    @abstractmethod
    def select(self, rows: Tensor) -> None: ...

    def _last(self, at: Tensor | None, **named: Any) -> Tensor:
        """Logits at one column of each row (the last one when None); the head is run there only."""
        width = 1

        def only(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else next(iter(kwargs.values()))
            columns = torch.full((hidden.shape[0],), hidden.shape[1] - 1) if at is None else at.cpu()
            cells = torch.stack([torch.arange(hidden.shape[0]), columns], dim=1)
            return with_input(args, kwargs, picked(hidden, cells).unsqueeze(1))

        with Taps((self.batch.rows, width)) as taps:
            taps.on_call(self.view.lm_head, only)
            output = self.model(**named, use_cache=True, return_dict=True)
        logits: Tensor = output.logits
        return logits[:, 0]


class _Causal(_Decoder):
    def __init__(self, model: PreTrainedModel, view: ModelView, batch: Batch) -> None:
        super().__init__(model, view, batch)
        # without the config every layer keeps all columns: sliding windows are then a matter of masks alone, and rows
        # can be moved
        self.cache = DynamicCache()
        self.mask = batch.attention_mask
        self.next_position = batch.lengths.clone()

    def prefill(self) -> Tensor:
        batch = self.batch
        logits = self._last(
            batch.starts + batch.lengths - 1, input_ids=batch.input_ids, attention_mask=self.mask,
            past_key_values=self.cache, **self._positions(batch.position_ids),
        )  # fmt: skip
        if batch.side == "right":
            self._align_right()
        return logits

    def step(self, tokens: Sequence[int]) -> Tensor:
        ids = torch.tensor(tokens, device=self.device).unsqueeze(1)
        self.mask = torch.cat([self.mask, torch.ones_like(ids)], dim=1)
        positions = self.next_position.unsqueeze(1)
        self.next_position = self.next_position + 1
        return self._last(
            None, input_ids=ids, attention_mask=self.mask, past_key_values=self.cache, **self._positions(positions)
        )

    def select(self, rows: Tensor) -> None:
        self.mask = self.mask[rows]
        self.next_position = self.next_position[rows]
        self.cache.batch_select_indices(rows)  # layers may be on several devices, which all take an index on the CPU

    def _positions(self, positions: Tensor) -> dict[str, Tensor]:
        return {"position_ids": positions} if takes(self.view.model, "position_ids") else {}

    def _align_right(self) -> None:
        """Move every row's cache to the right end: windows and local attention count columns, not positions."""
        width = self.batch.width
        shift = (width - self.batch.lengths).unsqueeze(1)
        order = (torch.arange(width, device=self.device).unsqueeze(0) - shift) % width
        self.mask = self.mask.gather(1, order)
        for layer in self.cache.layers:
            where = order.to(layer.keys.device)[:, None, :, None]
            layer.keys = layer.keys.gather(2, where.expand_as(layer.keys))
            layer.values = layer.values.gather(2, where.expand_as(layer.values))


class _Seq2Seq(_Decoder):
    def __init__(self, model: PreTrainedModel, view: ModelView, batch: Batch) -> None:
        super().__init__(model, view, batch)
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.mask = batch.attention_mask
        self.encoded: Tensor | None = None

    def prefill(self) -> Tensor:
        encoder = self.model.get_encoder()
        self.encoded = encoder(
            input_ids=self.batch.input_ids, attention_mask=self.mask, return_dict=True
        ).last_hidden_state
        return self.step([decoder_start(self.model)] * self.batch.rows)

    def step(self, tokens: Sequence[int]) -> Tensor:
        ids = torch.tensor(tokens, device=self.device).unsqueeze(1)
        return self._last(
            None, encoder_outputs=BaseModelOutput(last_hidden_state=self.encoded), attention_mask=self.mask,
            decoder_input_ids=ids, past_key_values=self.cache,
        )  # fmt: skip

    def select(self, rows: Tensor) -> None:
        self.mask = self.mask[rows]
        self.encoded = None if self.encoded is None else self.encoded[rows]
        self.cache.batch_select_indices(rows)
