"""A model as it is with low-rank edits, without writing them: differentiable in the edits' factors.

``y += (h X^T) D`` at each edited module is what the weight ``W + D^T X`` gives, and is cheap where the edit has few
rows. Rows of a batch may have edits of their own, so that many separate edits are tried in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from kedit_core.forward import ForwardTools, evaluating
from kedit_core.forward import frozen as frozen_parameters
from kedit_core.patches import DenseDelta, LowRankDelta
from kedit_methods_meta.places import Place
from kedit_methods_meta.questions import Questions


@frozen(eq=False)
class LowRank:
    """A weight's change as a sum over rows: ``outputs^T inputs``, ``[out, in]``.

    Attributes:
        inputs: ``[R, in]``.
        outputs: ``[R, out]``, with sign and step size in them.
        edit: ``[R]`` which edit each row is of.
    """

    inputs: Tensor
    outputs: Tensor
    edit: Tensor

    def operation(self, place: str) -> LowRankDelta | DenseDelta | None:
        """What a patch holds of it: the factors, or the whole where that is smaller; None for an edit without rows."""
        rows, width, out = len(self.inputs), self.inputs.shape[1], self.outputs.shape[1]
        if not rows:
            return None
        if rows * (width + out) < width * out:
            return LowRankDelta(place, self.outputs.T, self.inputs)
        return DenseDelta(place, self.outputs.T @ self.inputs)


Change = LowRank | Tensor
"""A low-rank edit, or a weight's change formed whole, ``[out, in]``."""


@contextmanager
def edited(
    forward: ForwardTools, places: Sequence[Place], edits: Mapping[str, Change], group: Tensor | None = None
) -> Iterator[None]:
    """The model with edits, for the length of a block; weights are not touched.

    Args:
        edits: by the name of each place's weight; places without one stay as they are.
        group: ``[batch rows]`` the edit that each row of the batches run inside is under (low-rank edits only); None
            puts every row under all edits.
    """
    with ExitStack() as stack:
        for place in places:
            if place.name in edits:
                module = forward.view.model.get_submodule(place.module)
                hook = _added(edits[place.name], group)
                stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def edited_logits(
    forward: ForwardTools,
    asked: Questions,
    places: Sequence[Place],
    edits: Mapping[str, Change],
    group: Tensor | None = None,
) -> Tensor:
    """Logits ``[n, vocabulary]`` at an asker's cells under edits; with gradients to these where they are enabled.

    Nothing below the lowest edited module is part of the graph.
    """
    with edited(forward, places, edits, group), evaluating(forward.model), frozen_parameters(forward.model):
        run = forward.run(asked.batch, logits_at=asked.cells, grad=torch.is_grad_enabled())
    if run.logits is None:
        raise RuntimeError("a run with logits_at gives logits")
    return run.logits


def _added(change: Change, group: Tensor | None) -> Callable[..., Any]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        hidden: Tensor = args[0] if args else kwargs["input"]
        if isinstance(change, Tensor):
            whole = change.to(hidden.device)
            return output + (hidden.to(whole.dtype) @ whole.T).to(output.dtype)
        if not len(change.inputs):
            return output + change.outputs.sum().to(output)  # nothing, but differentiable as every edit is
        inputs, outputs = change.inputs.to(hidden.device), change.outputs.to(hidden.device)
        along = hidden.to(inputs.dtype) @ inputs.T
        if group is not None:
            mine = group.to(hidden.device).unsqueeze(1) == change.edit.to(hidden.device)
            rows = len(mine)
            # some modules are run on [batch * seq, width]
            along = (along.reshape(rows, -1, along.shape[-1]) * mine.unsqueeze(1)).view(along.shape)
        return output + (along @ outputs).to(output.dtype)

    return hook
