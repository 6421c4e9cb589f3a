"""The part of a forward pass that a vector written into block ``layer`` changes: run again and again, cheaply."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.errors import InputError
from kedit_core.forward.batch import Batch
from kedit_core.forward.calls import (
    BlockCalls,
    PrefixCache,
    Unfit,
    block_stack,
    record_calls,
    run_blocks,
    tail_arguments,
)
from kedit_core.forward.sites import AnySite, Injection, Site
from kedit_core.forward.state import Stop, Taps, evaluating, injected, picked
from kedit_core.forward.state import frozen as frozen_parameters

if TYPE_CHECKING:
    from kedit_core.forward.run import ForwardTools
    from kedit_core.models import ModelView

logger = logging.getLogger(__name__)

# logits of both paths are compared once; only a path that computes something else is off by more than this
_SAME = {torch.float64: 1e-5, torch.float32: 1e-3}
_SAME_HALF = 0.1

# what a model that handles its cache, masks or positions in a way of its own may raise when its blocks are called alone
_MISFITS = (Unfit, RuntimeError, TypeError, ValueError, LookupError, AttributeError)


@frozen(eq=False)
class TailPlan:
    """What a tail is asked for: see :meth:`ForwardTools.tail`."""

    batch: Batch
    layer: int
    positions: Tensor
    logits_at: Tensor


class Tail(ABC):
    """Logits as a function of a vector added to the MLP's output of one block.

    Attributes:
        captured: activations of the clean pass, by site.
        fast: whether this is the fast path.
    """

    fast: bool

    def __init__(self, tools: ForwardTools, plan: TailPlan, captured: Mapping[AnySite, Tensor]) -> None:
        self.tools = tools
        self.view = tools.view
        self.plan = plan
        self.captured = dict(captured)

    def logits(self, delta: Tensor, row_group: Tensor | None = None) -> Tensor:
        """Logits ``[n, vocabulary]`` at ``logits_at``, with ``delta`` added to the MLP's output of the block.

        Differentiable in ``delta``, never in the parameters. A delta of another dtype than the model's is cast where
        it is added, so that it may be a float32 master copy.

        Args:
            delta: ``[rows, hidden]``, or ``[groups, hidden]`` with ``row_group``; row r is written at column
                ``positions[r]``.
            row_group: ``[rows]`` which group each row belongs to.

        Raises:
            InputError: a delta of another shape.
        """
        rows = self.plan.batch.rows
        values = delta if row_group is None else delta[row_group.to(delta.device)]
        if values.shape != (rows, self.view.hidden_size):
            raise InputError(
                f"delta must be [{rows} rows, {self.view.hidden_size}] (or [groups, width] with a group for each row), "
                f"not {list(delta.shape)}"
            )
        with evaluating(self.tools.model), frozen_parameters(self.tools.model):
            return self._logits(values)

    @abstractmethod
    def _logits(self, values: Tensor) -> Tensor: ...


class PlainTail(Tail):
    """The reference: the whole model is run with a hook on the block's MLP. Holds nothing; a call costs a full pass."""

    fast = False

    def _logits(self, values: Tensor) -> Tensor:
        plan = self.plan
        rows = torch.arange(plan.batch.rows)
        injection = Injection(Site(plan.layer, "mlp", "output"), rows, plan.positions, values)
        with self.tools.following(plan.batch), Taps((plan.batch.rows, plan.batch.width)) as taps:
            taps.change(self.view.mlp(plan.layer), "output", lambda x: injected(x, injection))
            output = self.tools.model(**self.tools.inputs(plan.batch))
        return picked(output.logits, plan.logits_at)


class FastTail(Tail):
    """Runs only what the vector can change.

    One pass without gradients keeps the residual stream where the tail begins, how the later blocks are called and
    their keys and values of the columns before the first written one; each call then runs the later blocks from that
    column on, and the head at ``logits_at`` only. Where a vector on the MLP's output is one on the block's output, the
    tail begins after the block; where a norm follows the MLP, with the block itself. In an encoder-decoder every
    encoder column sees every other, so no column is left out, and the decoder is run as a whole.

    Memory: ``rows x columns x hidden`` once, and twice ``rows x prefix x key width`` for each later block, beside
    the gradient's own.

    Raises:
        Unfit: (from the constructor) the model calls its blocks in a way this does not understand.
    """

    fast = True

    def __init__(
        self, tools: ForwardTools, plan: TailPlan, capture: tuple[AnySite, ...] = (), at: Tensor | None = None
    ) -> None:
        super().__init__(tools, plan, {})
        view, batch = self.view, plan.batch
        self.first_block = plan.layer + 1 if view.block_delta_ok else plan.layer
        decoder = not view.is_encoder_decoder
        self.first = int(plan.positions.min()) if decoder else 0
        self.end = int(torch.cat([plan.positions, plan.logits_at[:, 1]]).max()) + 1 if decoder else batch.width
        cache = PrefixCache(self.first) if decoder else None
        start: list[Tensor] = []
        with torch.no_grad(), tools.following(batch), Taps((batch.rows, batch.width)) as taps:
            tools.capture(taps, capture, at, self.captured)
            calls = record_calls(taps, view, self.first_block, cache)
            if self.first_block < view.num_layers:
                taps.read(view.block(self.first_block), "input", start.append)
            else:
                taps.read(view.block(view.num_layers - 1), "output", start.append)
            # an encoder's own final norm is run again too, so it must be seen; a decoder's is part of the head
            ending = view.block(view.num_layers - 1) if decoder else block_stack(view)
            taps.stop_at(ending, "output", lambda: True)
            with suppress(Stop):
                tools.model(**tools.inputs(batch))
        if unread := [site for site in capture if site not in self.captured]:
            self.captured.update(tools.run(batch, capture=unread, at=at).activations)
        self.hidden = start[0][:, self.first : self.end].detach().clone()
        self.after = calls.after
        self.arguments = self._arguments(calls, cache)
        self.traits = (
            self.first > 0,
            batch.side,
            any(named.get("attention_mask") is None for named in calls.arguments.values()),
        )

    def _arguments(self, calls: BlockCalls, cache: PrefixCache | None) -> dict[int, dict[str, Any]]:
        if len(calls.arguments) != self.view.num_layers - self.first_block:
            raise Unfit("not every block was called once")
        if cache is None:
            return calls.arguments
        if len(cache.kept) != len(calls.arguments):
            raise Unfit("the blocks did not use the KV cache they were given")
        cache.recording = False
        batch = self.plan.batch
        tokens = batch.attention_mask[:1] if bool(batch.attention_mask.all()) else batch.attention_mask
        return {index: tail_arguments(named, self.first, self.end, tokens) for index, named in calls.arguments.items()}

    def _logits(self, values: Tensor) -> Tensor:
        plan, view = self.plan, self.view
        rows = torch.arange(plan.batch.rows)
        injection = Injection(Site(plan.layer, "mlp", "output"), rows, plan.positions - self.first, values)
        last = view.num_layers - 1
        with Taps((plan.batch.rows, self.end - self.first)) as taps:
            if view.block_delta_ok:
                hidden = injected(self.hidden, injection)
            else:
                hidden = self.hidden
                taps.change(view.mlp(plan.layer), "output", lambda x: injected(x, injection))
            hidden = run_blocks(view, hidden, self.first_block, last, self.arguments)
        if view.is_encoder_decoder:
            for module in self.after:
                hidden = module(hidden)
            return self.tools.decoder_logits(plan.batch, hidden, plan.logits_at)
        where = plan.logits_at.to(hidden.device)
        return view.head(hidden[where[:, 0], where[:, 1] - self.first])


def check_plan(view: ModelView, plan: TailPlan) -> None:
    """Refuse positions and cells that the batch does not have.

    Raises:
        InputError: such a position or cell, or an encoder-decoder's batch without decoder input.
    """
    batch, positions, cells = plan.batch, plan.positions, plan.logits_at
    columns = batch.width
    if view.is_encoder_decoder:
        if batch.decoder_input_ids is None:
            raise InputError("a tail through a decoder needs decoder_input_ids; give batch() the targets")
        columns = int(batch.decoder_input_ids.shape[1])
    if positions.shape != (batch.rows,) or not bool(((positions >= 0) & (positions < batch.width)).all()):
        raise InputError(f"positions must be one column of {batch.width} for each of {batch.rows} rows")
    if cells.dim() != 2 or cells.shape[1] != 2 or cells.shape[0] == 0:
        raise InputError(f"logits_at must be [n, 2] (row, column) pairs, not {list(cells.shape)}")
    if not bool(((cells >= 0) & (cells < torch.tensor([batch.rows, columns]))).all()):
        raise InputError(f"logits_at names cells outside of {batch.rows} rows and {columns} columns")


def fast_tail(
    tools: ForwardTools,
    plan: TailPlan,
    capture: tuple[AnySite, ...],
    at: Tensor | None,
    trusted: dict[tuple[Any, ...], bool],
) -> FastTail | None:
    """A fast tail, or None where the model does not allow it.

    ``trusted`` remembers for each kind of batch whether the fast path gave the plain one's logits; a new kind is tried.
    """
    name = type(tools.model).__name__
    if not trusted.get((), True):
        return None
    try:
        with evaluating(tools.model):
            tail = FastTail(tools, plan, capture, at)
        if tail.traits not in trusted:
            trusted[tail.traits] = _same(tail, PlainTail(tools, plan, {}))
            if not trusted[tail.traits]:
                logger.warning("the fast path of %s gives other logits; the plain one is used", name)
    except _MISFITS as exc:
        if isinstance(exc, Unfit):
            trusted[()] = False
        logger.warning("there is no fast path for %s (%s); the plain one is used", name, exc)
        return None
    return tail if trusted[tail.traits] else None


def _same(fast: FastTail, plain: PlainTail) -> bool:
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(fast.plan.batch.rows, fast.view.hidden_size, generator=generator)
    # as large as the stream it is added to, so that a wrong column or mask shows
    delta = delta.to(fast.hidden.device) * fast.hidden.float().std().clamp(min=1e-3)
    with torch.no_grad():
        got, want = fast.logits(delta), plain.logits(delta)
    bound = _SAME.get(got.dtype, _SAME_HALF) * max(1.0, float(want.abs().max()))
    return bool((got.float() - want.float()).abs().max() <= bound)
