"""The fast tail: runs only what the vectors can change, again and again, and is checked against the plain one."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kedit_core.forward.calls import (
    BlockCalls,
    PrefixCache,
    Unfit,
    block_stack,
    record_calls,
    run_blocks,
    tail_arguments,
)
from kedit_core.forward.sites import AnySite, Injection, Part, Site
from kedit_core.forward.state import Stop, Taps, evaluating, injected
from kedit_core.forward.tail import PlainTail, Tail, TailPlan

if TYPE_CHECKING:
    from kedit_core.forward.run import ForwardTools
    from kedit_core.models import ModelView

logger = logging.getLogger(__name__)

# logits of both paths are compared once; only a path that computes something else is off by more than this
_SAME = {torch.float64: 1e-5, torch.float32: 1e-3}
_SAME_HALF = 0.1

# what a model that handles its cache, masks or positions in a way of its own may raise when its blocks are called alone
_MISFITS = (Unfit, RuntimeError, TypeError, ValueError, LookupError, AttributeError)


class FastTail(Tail):
    """Runs only what the vectors can change.

    One pass without gradients keeps the residual stream where the tail begins, how the later blocks are called and
    their keys and values of the columns before the first written one; each call then runs the later blocks from that
    column on, and the head at ``logits_at`` only. Where a vector on a part's output is one on the block's output, the
    tail begins after the block; where it is not (a norm follows, or the MLP reads what the attention wrote), with the
    block itself. In an encoder-decoder every encoder column sees every other, so no column is left out, and the
    decoder is run as a whole.

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
        self.behind = all(_reaches_the_stream(view, part) for part in plan.parts)
        self.first_block = plan.layer + 1 if self.behind else plan.layer
        decoder = not view.is_encoder_decoder
        columns = torch.cat([plan.positions, plan.logits_at[:, 1]]) if decoder else torch.tensor([0, batch.width - 1])
        self.first, self.end = int(columns.min()), int(columns.max()) + 1
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
        # indices stay where the stream is: fetching them there in every step would make the host wait for the device
        device = self.hidden.device
        self.rows = torch.arange(batch.rows, device=device)
        self.columns = (plan.positions - self.first).to(device)
        self.cells = (plan.logits_at - torch.tensor([0, self.first if decoder else 0])).to(device)
        self.depth = None if plan.after is None else plan.after.to(device)
        self.traits = (
            self.first > 0,
            batch.side,
            any(named.get("attention_mask") is None for named in calls.arguments.values()),
            plan.parts,
            plan.after is not None,
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
        plan, hidden = self.plan, self.hidden
        with Taps((plan.batch.rows, self.end - self.first)) as taps:
            if self.behind:
                # only their sum reaches the stream
                site = Site(plan.layer, "block")
                hidden = injected(hidden, Injection(site, self.rows, self.columns, values.sum(1)))
            else:
                self.write(taps, self.rows, self.columns, values)
            return self._decoded(hidden) if self.view.is_encoder_decoder else self.view.head(self._read(hidden))

    def _read(self, hidden: Tensor) -> Tensor:
        """The residual stream ``[n, hidden]`` at the wanted cells, each after its block."""
        found: Tensor | None = None
        done = self.first_block
        for block in self.depths or [self.view.num_layers - 1]:
            hidden = run_blocks(self.view, hidden, done, block, self.arguments)
            done = block + 1
            cells = self.cells.to(hidden.device)
            here = hidden[cells[:, 0], cells[:, 1]]
            if found is None or self.depth is None:
                found = here
            else:
                found = torch.where((self.depth == block)[:, None].to(here.device), here, found.to(here.device))
        return hidden if found is None else found

    def _decoded(self, hidden: Tensor) -> Tensor:
        hidden = run_blocks(self.view, hidden, self.first_block, self.view.num_layers - 1, self.arguments)
        for module in self.after:
            hidden = module(hidden)
        return self.tools.decoder_logits(self.plan.batch, hidden, self.cells)


def _reaches_the_stream(view: ModelView, part: Part) -> bool:
    """Whether a vector added to the part's output is just that vector added to the block's output."""
    if part == "block":
        return True
    return view.block_delta_ok and (part != "attn_out" or view.parallel)


def fast_tail(
    tools: ForwardTools,
    plan: TailPlan,
    capture: tuple[AnySite, ...],
    at: Tensor | None,
    trusted: dict[tuple[Any, ...], bool],
) -> FastTail | None:
    """A fast tail, or None where the model does not allow it.

    ``trusted`` remembers for each kind of batch and plan whether the fast path gave the plain one's logits; a new kind
    is tried.
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
    """Whether both give the same logits with vectors, all different, at every place that is written."""
    generator = torch.Generator().manual_seed(0)
    shape = (fast.plan.batch.rows, len(fast.plan.parts), fast.view.hidden_size)
    delta = torch.randn(shape, generator=generator)
    # as large as the stream it is added to, so that a wrong column or mask shows
    delta = delta.to(fast.hidden.device) * fast.hidden.float().std().clamp(min=1e-3)
    delta = delta[:, 0] if len(fast.plan.parts) == 1 else delta
    with torch.no_grad():
        got, want = fast.logits(delta), plain.logits(delta)
    bound = _SAME.get(got.dtype, _SAME_HALF) * max(1.0, float(want.abs().max()))
    return bool((got.float() - want.float()).abs().max() <= bound)
