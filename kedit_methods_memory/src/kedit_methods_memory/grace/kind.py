"""The codebook on a live model: module kind ``grace.codebook``.

Hartvigsen et al. 2023 (arXiv 2211.11031), section 3.1; specification: GRACE, "Forward of the adaptor".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.errors import PatchFormatError, ScopeError
from kedit_core.patches import LiveContext, ModuleOperation
from kedit_core.patches.weights import exact_maths
from kedit_methods_memory.beneath import Quietable
from kedit_methods_memory.nearest import nearest, squares
from kedit_methods_memory.projections import check_widths

_NONE, _PENDING = -1, -2  # no key fires; the query's token has not been read yet


class Codebook(Quietable):
    """Puts a stored value in place of a projection's output where its input is within the radius of the nearest key.

    Tensors: ``keys`` ``[n, in]``, ``values`` ``[n, out]``, ``radii`` ``[n]``, all float32. Config: ``replacement``
    (``replace_last``, ``replace_prompt``, ``replace_all``), ``token`` (``last_prompt``, or ``first_target``: the token
    after it) and ``requery`` (each written token is held against the keys anew).

    The query is each row's input at its token; it is decided once, when the prompt is read. Rows for which no key
    fires keep their output bit for bit; when there are none that do, nothing is copied.

    Memory: keys, values and a number for each key, on the module's device; a copy of the module's output when a key
    fires.
    """

    def __init__(self, operation: ModuleOperation, live: LiveContext) -> None:
        super().__init__(operation, live)
        config = operation.config
        self._place = operation.places[0]
        self._replacement = config.get("replacement")
        self._before = self._replacement == "replace_prompt"
        self._late = config.get("token") == "first_target"
        self._requery = config.get("requery") is True
        if (
            len(operation.places) != 1
            or self._replacement not in ("replace_last", "replace_prompt", "replace_all")
            or config.get("token") not in ("last_prompt", "first_target")
        ):
            raise PatchFormatError(f"a grace.codebook has one place, a replacement and a token, not {dict(config)}")
        check_codebook(operation.tensors)
        keys, values = operation.tensors["keys"], operation.tensors["values"]
        check_widths("grace.codebook", self._place, live.modules[self._place], keys.shape[1], values.shape[1])
        self.to_device({self._place: live.device(self._place)})

    def to_device(self, devices: Mapping[str, torch.device]) -> None:
        """Keep the codebook where its module is."""
        device, tensors = devices[self._place], self.operation.tensors
        self._keys, self._values = tensors["keys"].to(device).float(), tensors["values"].to(device).float()
        self._radii = tensors["radii"].to(device).float()
        self._lengths = squares(self._keys)

    def after(self, place: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any | None:
        """The output with values in place of it where keys fire; None where none does."""
        if self.quiet:
            return None
        scope = self.live.scope
        scope.require()
        if scope.phase == "decode" and not self._late and not self._requery and self._replacement != "replace_all":
            return None  # what was replaced is in the cache already
        value = scope.by_row((args[0] if args else kwargs["input"]).detach())
        with exact_maths(value.device):
            found = self._prefill(value) if scope.phase == "prefill" else self._decode(value)
        if found is None:
            return None
        whole = scope.by_row(output)
        # a new tensor, through which others may still take gradients
        return whole.index_put((found.rows, found.columns), found.values.to(whole.dtype)).reshape(output.shape)

    def _lookup(self, queries: Tensor) -> Tensor:
        """``[n]`` the key that fires for each query ``[n, in]``, or -1. Only the nearest key is asked."""
        found = nearest(queries, self._keys, self._lengths)
        return torch.where(found.distance <= self._radii[found.index], found.index, _NONE)

    def _prefill(self, value: Tensor) -> _Cells | None:
        """What the prompts' queries say; kept for the tokens that follow."""
        scope, columns = self.live.scope, value.shape[1]
        ends = scope.prompt_ends.to(value.device)
        at = ends + 1 if self._late else ends
        here = (at >= 0) & (at < columns)
        index = torch.arange(value.shape[0], device=value.device)
        chosen = self._lookup(value[index, at.clamp(0, columns - 1)])
        chosen = torch.where(here, chosen, _PENDING if self._late else _NONE)
        self._keep(chosen)
        return self._write(chosen, at, columns)

    def _decode(self, value: Tensor) -> _Cells | None:
        start = torch.zeros(len(value), dtype=torch.int64, device=value.device)
        if self._requery:
            return self._write(self._lookup(value[:, 0]), start, value.shape[1])
        kept: Tensor | None = self.live.scope.get((self, "chosen"))
        if kept is None:
            raise ScopeError("a codebook was put on between a prompt and its answer; read the prompt again")
        chosen = kept.to(value.device)
        if self._late and bool((pending := chosen == _PENDING).any()):
            found = torch.where(pending, self._lookup(value[:, 0]), chosen)
            self._keep(found)
            if self._replacement == "replace_last":
                return self._write(torch.where(pending, found, _NONE), start, value.shape[1])
            chosen = found
        return self._write(chosen, start, value.shape[1]) if self._replacement == "replace_all" else None

    def _keep(self, chosen: Tensor) -> None:
        # on the host, where looking whether any fires makes nobody wait
        self.live.scope.put((self, "chosen"), chosen.cpu())

    def _write(self, chosen: Tensor, at: Tensor, columns: int) -> _Cells | None:
        """The cells of rows whose key fires, or None when there are none; ``at`` ``[rows]`` column of the query."""
        if self._replacement == "replace_last":
            rows = (chosen >= 0).nonzero()[:, 0]
            where = at[rows]
        else:
            column = torch.arange(columns, device=chosen.device)
            chosen_columns = (chosen >= 0).unsqueeze(1) & (column < (at.unsqueeze(1) if self._before else columns))
            rows, where = chosen_columns.nonzero(as_tuple=True)
        return _Cells(rows, where, self._values[chosen[rows]]) if len(rows) else None


@frozen(eq=False)
class _Cells:
    """``rows``, ``columns`` ``[n]`` of what is replaced by ``values`` ``[n, out]``."""

    rows: Tensor
    columns: Tensor
    values: Tensor


def check_codebook(tensors: Mapping[str, Tensor]) -> None:
    """PatchFormatError unless keys, values and radii fit together."""
    shapes = {role: list(tensor.shape) for role, tensor in tensors.items()}
    fits = set(tensors) == {"keys", "values", "radii"} and all(t.is_floating_point() for t in tensors.values())
    if fits:
        keys, values, radii = tensors["keys"], tensors["values"], tensors["radii"]
        fits = keys.dim() == values.dim() == 2 and len(keys) == len(values) > 0 and radii.shape == (len(keys),)
    if not fits:
        raise PatchFormatError(f"a grace.codebook has keys [n, in], values [n, out] and radii [n], not {shapes}")
