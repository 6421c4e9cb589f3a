"""A few consecutive blocks, run again and again from a kept input while their weights change in between."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kedit_core.errors import InputError
from kedit_core.forward.batch import Batch
from kedit_core.forward.calls import BlockCalls, Unfit, record_calls, run_blocks
from kedit_core.forward.sites import AnySite, Site
from kedit_core.forward.state import Stop, Taps, evaluating

if TYPE_CHECKING:
    from kedit_core.forward.run import ForwardTools

logger = logging.getLogger(__name__)

_SAME = {torch.float64: 1e-9, torch.float32: 1e-4}
_SAME_HALF = 0.05
_MISFITS = (Unfit, RuntimeError, TypeError, ValueError, LookupError, AttributeError)


class Span:
    """One batch at the input of block ``next``, with all that later blocks need to be run from there.

    Whoever changes the weights of block ``next`` reads again with :meth:`read` and then goes on with :meth:`advance`;
    blocks below are never run again. On the plain path every reading is a pass from the embeddings.

    Attributes:
        next: the block whose input is kept.
        fast: whether readings start there.
    """

    def __init__(
        self, tools: ForwardTools, batch: Batch, first: int, last: int, trusted: dict[tuple[Any, ...], bool]
    ) -> None:
        if not 0 <= first <= last < tools.view.num_layers:
            raise InputError(f"a span is of blocks of the model (0 to {tools.view.num_layers - 1}), not {first}-{last}")
        self._tools, self._batch, self._last, self._trusted = tools, batch, last, trusted
        self.next = first
        self._hidden: Tensor | None = None
        self._calls = BlockCalls()
        # module operations on the stack read whole passes
        if tools.fast and not (tools.scope is not None and tools.scope.watching):
            self._keep(first)

    @property
    def fast(self) -> bool:
        return self._hidden is not None

    def read(self, sites: Sequence[Site], at: Tensor | None = None) -> dict[AnySite, Tensor]:
        """Activations at ``sites`` (none below ``next``) with the weights as they are now; see ``ForwardTools.run``."""
        if self._hidden is None:
            deepest = max(site.layer for site in sites)
            return self._tools.run(self._batch, capture=sites, at=at, stop_after=deepest).activations
        found: dict[AnySite, Tensor] = {}
        with self._running() as taps:
            self._tools.capture(taps, sites, at, found, stop=True)
            with suppress(Stop):
                run_blocks(
                    self._tools.view, self._hidden, self.next, max(s.layer for s in sites), self._calls.arguments
                )
        if missing := [site for site in sites if site not in found]:
            raise InputError(f"the span from block {self.next} on does not come by {missing[0]}; ask a span before it")
        return found

    def advance(self) -> None:
        """Run block ``next`` with its weights as they are now, and go on from its output."""
        if self._hidden is not None and self.next < self._last:
            with self._running():
                after = run_blocks(self._tools.view, self._hidden, self.next, self.next, self._calls.arguments)
                self._hidden = after.detach()
        self.next += 1

    @contextmanager
    def _running(self) -> Iterator[Taps]:
        """All that a pass outside of ``ForwardTools.run`` needs."""
        batch, tools = self._batch, self._tools
        with (
            torch.no_grad(),
            evaluating(tools.model),
            tools.following(batch),
            Taps((batch.rows, batch.width)) as taps,
        ):
            yield taps

    def _keep(self, first: int) -> None:
        tools, view = self._tools, self._tools.view
        start: list[Tensor] = []
        end: list[Tensor] = []
        try:
            with self._running() as taps:
                self._calls = record_calls(taps, view, first)
                taps.read(view.block(first), "input", start.append)
                taps.read(view.block(self._last), "output", end.append)
                taps.stop_at(view.block(self._last), "output", lambda: True)
                with suppress(Stop):
                    tools.model(**tools.inputs(self._batch))
            hidden = start[0].detach().clone()
            if self._faithful(hidden, end[0].detach()):
                self._hidden = hidden
        except _MISFITS as error:
            logger.warning(
                "blocks of %s cannot be resumed (%s); whole passes are used", type(tools.model).__name__, error
            )

    def _faithful(self, hidden: Tensor, wanted: Tensor) -> bool:
        """Whether blocks run from ``hidden`` give what the whole pass gave; tried once for each kind of batch."""
        tools = self._tools
        padded = not bool(self._batch.attention_mask.all())
        kind = ("span", self._batch.side if padded else None)
        if kind not in self._trusted:
            with self._running():
                got = run_blocks(tools.view, hidden, self.next, self._last, self._calls.arguments)
            real = self._batch.attention_mask.bool().to(got.device)
            bound = _SAME.get(got.dtype, _SAME_HALF) * max(1.0, float(wanted[real].abs().max()))
            self._trusted[kind] = bool((got - wanted)[real].abs().max() <= bound)
            if not self._trusted[kind]:
                logger.warning(
                    "resumed blocks of %s give other states; whole passes are used", type(tools.model).__name__
                )
        return self._trusted[kind]
