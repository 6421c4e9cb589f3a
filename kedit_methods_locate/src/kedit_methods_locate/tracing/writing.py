"""Putting states in place of a block's own while it runs, for passes that begin in the middle of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from attrs import frozen
from torch import Tensor, nn

from kedit_core.errors import InputError
from kedit_core.forward import Site
from kedit_core.models import ModelView


@frozen(eq=False)
class Overwrite:
    """``output[rows, columns] = values`` at a site.

    Attributes:
        rows, columns: ``[n]``.
        values: ``[n, width]``.
    """

    site: Site
    rows: Tensor
    columns: Tensor
    values: Tensor

    def into(self, x: Tensor) -> Tensor:
        """``x`` ``[batch, seq, width]`` with the values in place; ``x`` stays as it is."""
        where = (self.rows.to(x.device), self.columns.to(x.device))
        return x.index_put(where, self.values.to(device=x.device, dtype=x.dtype))


@contextmanager
def overwriting(view: ModelView, overwrites: Sequence[Overwrite], layout: tuple[int, int]) -> Iterator[None]:
    """Inside, modules give the overwritten outputs; their hooks are gone afterwards, also on errors.

    ``layout`` is ``(batch, seq)`` of the pass: some architectures fold both into one axis inside of a block.
    Raises InputError for a site that is no output of a block, its MLP or its attention's projection.
    """
    finders = {"block": view.block, "mlp": view.mlp, "attn_out": view.attn_out}
    with ExitStack() as hooks:
        for each in overwrites:
            finder = finders.get(each.site.part)
            if finder is None or each.site.side != "output":
                raise InputError(f"states are written at outputs of {', '.join(finders)}, not at {each.site}")
            hooks.callback(finder(each.site.layer).register_forward_hook(_Hook(each, layout)).remove)
        yield


class _Hook:
    def __init__(self, overwrite: Overwrite, layout: tuple[int, int]) -> None:
        self.overwrite, self.layout = overwrite, layout

    def __call__(self, _: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return self._changed(output)
        return (self._changed(output[0]), *output[1:])

    def _changed(self, x: Tensor) -> Tensor:
        return self.overwrite.into(x.view(*self.layout, x.shape[-1])).view(x.shape)
