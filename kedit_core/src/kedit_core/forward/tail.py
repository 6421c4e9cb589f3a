"""The part of a forward pass that vectors written into block ``layer`` change: what a tail is, and the plain one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.errors import InputError
from kedit_core.forward.batch import Batch
from kedit_core.forward.sites import AnySite, Injection, Part, Site, module_at
from kedit_core.forward.state import Taps, evaluating, injected, picked
from kedit_core.forward.state import frozen as frozen_parameters

if TYPE_CHECKING:
    from kedit_core.forward.run import ForwardTools
    from kedit_core.models import ModelView

# an attention module may give more than the residual stream gets, so its projection is written instead
_WRITABLE: tuple[Part, ...] = ("mlp", "mlp_out", "attn_out", "block")


@frozen(eq=False)
class TailPlan:
    """What a tail is asked for: see :meth:`ForwardTools.tail`. Tensors are on the CPU."""

    batch: Batch
    layer: int
    positions: Tensor
    logits_at: Tensor
    parts: tuple[Part, ...] = ("mlp",)
    after: Tensor | None = None

    @property
    def depths(self) -> list[int]:
        """The blocks after which cells are read, ascending; none where all are ordinary logits."""
        return [] if self.after is None else sorted(set(self.after.tolist()))


class Tail(ABC):
    """Logits as a function of vectors added to outputs inside one block.

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
        self.depths = plan.depths

    def logits(self, delta: Tensor, row_group: Tensor | None = None) -> Tensor:
        """Logits ``[n, vocabulary]`` at ``logits_at``, with ``delta`` added to the outputs of the plan's parts.

        Differentiable in ``delta``, never in the parameters. A delta of another dtype than the model's is cast where
        it is added, so that it may be a float32 master copy.

        Args:
            delta: ``[rows, hidden]``, or ``[groups, hidden]`` with ``row_group``; row r is written at column
                ``positions[r]``. With several parts ``[rows or groups, parts, hidden]``, in the plan's order.
            row_group: ``[rows]`` which group each row belongs to.

        Raises:
            InputError: a delta of another shape.
        """
        rows, parts, width = self.plan.batch.rows, len(self.plan.parts), self.view.hidden_size
        values = delta if row_group is None else delta[row_group.to(delta.device)]
        wanted = (rows, width) if parts == 1 else (rows, parts, width)
        if values.shape != wanted:
            raise InputError(
                f"delta must be {list(wanted)} for {rows} rows (or one such vector for each group, with a group for "
                f"each row), not {list(delta.shape)}"
            )
        with evaluating(self.tools.model), frozen_parameters(self.tools.model):
            return self._logits(values.view(rows, parts, width))

    @abstractmethod
    def _logits(self, values: Tensor) -> Tensor:
        """The logits for values ``[rows, parts, hidden]``."""

    def write(self, taps: Taps, rows: Tensor, columns: Tensor, values: Tensor) -> None:
        """Add values ``[rows, parts, hidden]`` to their parts' outputs in the pass that ``taps`` belongs to."""
        for part, vector in zip(self.plan.parts, values.unbind(1), strict=True):
            injection = Injection(Site(self.plan.layer, part), rows, columns, vector)
            taps.change(module_at(self.view, injection.site), "output", partial(injected, injection=injection))


class PlainTail(Tail):
    """The reference: the whole model is run with hooks on the parts. Holds nothing; a call costs a full pass."""

    fast = False

    def _logits(self, values: Tensor) -> Tensor:
        plan, view = self.plan, self.view
        early: dict[int, Tensor] = {}
        with self.tools.following(plan.batch), Taps((plan.batch.rows, plan.batch.width)) as taps:
            self.write(taps, torch.arange(plan.batch.rows), plan.positions, values)
            for block in self.depths:  # behind the writing, so that what is read has the vectors in it
                taps.read(view.block(block), "output", partial(self._note, early, block))
            output = self.tools.model(**self.tools.inputs(plan.batch))
        logits = picked(output.logits, plan.logits_at)
        for block, hidden in early.items():
            if plan.after is not None and block < view.num_layers - 1:
                here = (plan.after == block)[:, None].to(logits.device)
                logits = torch.where(here, view.head(hidden).to(logits.device), logits)
        return logits

    def _note(self, early: dict[int, Tensor], block: int, hidden: Tensor) -> None:
        early[block] = picked(hidden, self.plan.logits_at)


def check_plan(view: ModelView, plan: TailPlan) -> None:
    """Refuse parts, positions, cells and depths that the model or the batch does not have.

    Raises:
        InputError: such a part, position, cell or depth, or an encoder-decoder's batch without decoder input.
    """
    batch, positions, cells = plan.batch, plan.positions, plan.logits_at
    module_at(view, Site(plan.layer, "block"))
    if not plan.parts or len(set(plan.parts)) < len(plan.parts) or not set(plan.parts) <= set(_WRITABLE):
        raise InputError(f"a tail's parts are one or more of {', '.join(_WRITABLE)}, each once, not {plan.parts}")
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
    if plan.after is not None:
        _check_depths(view, plan.layer, plan.after, cells.shape[0])


def _check_depths(view: ModelView, layer: int, after: Tensor, count: int) -> None:
    if view.is_encoder_decoder:
        raise InputError("an encoder's blocks give no logits; leave out after (or v_loss_layer) for an encoder-decoder")
    if after.shape != (count,) or not bool(((after >= layer) & (after < view.num_layers)).all()):
        raise InputError(
            f"after must be one block from {layer} (which is written) to {view.num_layers - 1} for each of the "
            f"{count} cells, not {after.tolist()}"
        )
