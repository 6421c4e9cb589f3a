"""Logits of one batch, again and again, while something changes from a block on: what lies below is run once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kedit_core.errors import InputError
from kedit_core.forward import Batch, BlockCalls, ForwardTools, Site, evaluating, frozen
from kedit_core.forward.calls import Unfit

logger = logging.getLogger(__name__)

_SAME = {torch.float64: 1e-9, torch.float32: 1e-3}
_SAME_HALF = 0.1
# what a model that handles its masks or positions in a way of its own may raise when its blocks are called alone
_MISFITS = (Unfit, RuntimeError, TypeError, ValueError, LookupError, AttributeError)


class Resumed:
    """Logits ``[n, vocabulary]`` at ``cells``, with the hooks now on the model; differentiable in what they add.

    The input of block ``first`` is kept, and later blocks are run from there. That is tried once against the whole
    pass; a model whose blocks do not give the same, an encoder-decoder, one with module operations on it, and
    ``fast=False`` get a whole pass each time.

    Parameters take no gradient. Memory: the residual stream of the batch, beside a pass's own.

    Args:
        forward: tools of the model; as it is now for what lies below ``first``.
        batch: the rows.
        first: the lowest block in which anything will change.
        cells: ``[n, 2]`` (row, column); columns of ``decoder_input_ids`` for an encoder-decoder.
    """

    def __init__(self, forward: ForwardTools, batch: Batch, first: int, cells: Tensor, fast: bool = True) -> None:
        self._forward, self._batch, self._first, self._cells = forward, batch, first, cells
        self._hidden: Tensor | None = None
        self._calls = BlockCalls()
        watched = forward.scope is not None and forward.scope.watching
        if fast and forward.fast and first > 0 and not watched and not forward.view.is_encoder_decoder:
            self._keep()

    @property
    def fast(self) -> bool:
        """Whether passes begin at block ``first``."""
        return self._hidden is not None

    def logits(self) -> Tensor:
        """The logits as things are now; with gradients when they are enabled."""
        with frozen(self._forward.model):
            if self._hidden is not None:
                return self._from(self._hidden)
            found = self._forward.run(self._batch, logits_at=self._cells, grad=torch.is_grad_enabled()).logits
        if found is None:
            raise InputError("the model gave no logits")
        return found

    def _from(self, hidden: Tensor) -> Tensor:
        view = self._forward.view
        last = self._forward.blocks(hidden, self._first, view.num_layers - 1, self._calls)
        cells = self._cells.to(last.device)
        with evaluating(self._forward.model):
            return view.head(last[cells[:, 0], cells[:, 1]])

    def _keep(self) -> None:
        site, name = Site(self._first, "block", "input"), type(self._forward.model).__name__
        try:
            self._calls = self._forward.record(self._batch)
            run = self._forward.run(self._batch, capture=[site], logits_at=self._cells)
            hidden = run.activations[site]
            with torch.no_grad():
                got = self._from(hidden)
        except _MISFITS as error:
            logger.warning("blocks of %s cannot be resumed (%s); whole passes are used", name, error)
            return
        wanted = run.logits
        bound = _SAME.get(got.dtype, _SAME_HALF)
        if wanted is not None and bool((got - wanted).abs().max() <= bound * max(1.0, float(wanted.abs().max()))):
            self._hidden = hidden
        else:
            logger.warning("resumed blocks of %s give other logits; whole passes are used", name)


@contextmanager
def changed(module: nn.Module, function: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """For the length of a block, a module's output is ``function(input, output)``, after all that is on it already."""

    def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        return function(args[0] if args else kwargs["input"], output)

    handle = module.register_forward_hook(after, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
