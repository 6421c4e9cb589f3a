"""Logits of some rows as a function of what a side memory adds to the adapted projection's output."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kedit_core.forward import ForwardTools
from kedit_methods_memory.projections import Projection
from kedit_methods_memory.questions import Questions
from kedit_methods_memory.resumed import Resumed


class Answers:
    """Runs what lies behind the projection, again and again.

    What is added to an MLP's output is added to the residual stream, so where nothing stands in between, rows are taken
    up at the next block; else at the projection's own (an input projection, a norm behind the MLP, the last block).

    Args:
        forward: tools of the model as it is without the memory.
        questions: the rows.
    """

    def __init__(self, forward: ForwardTools, place: Projection, questions: Questions) -> None:
        view = forward.view
        self._next = place.part == "mlp_out" and view.block_delta_ok and place.layer + 1 < view.num_layers
        first = place.layer + 1 if self._next else place.layer
        self._module = view.block(first) if self._next else place.module
        self._resumed = Resumed(forward, questions.batch, first, questions.cells)

    def logits(self, change: Tensor) -> Tensor:
        """``[cells, vocabulary]``, with ``change`` ``[rows, columns, out]`` added (in its dtype, rounded once);
        differentiable in it."""

        def added(value: Tensor) -> Tensor:
            return (value.to(change.dtype) + change.reshape(value.shape).to(value.device)).to(value.dtype)

        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (added(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": added(kwargs["hidden_states"])}

        def after(_: Any, __: Any, output: Tensor) -> Tensor:
            return added(output)

        if self._next:
            handle = self._module.register_forward_pre_hook(before, with_kwargs=True)
        else:
            handle = self._module.register_forward_hook(after)
        try:
            return self._resumed.logits()
        finally:
            handle.remove()
