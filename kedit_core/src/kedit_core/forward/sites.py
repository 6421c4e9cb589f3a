"""Places in a transformer where vectors are read or written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from attrs import frozen
from torch import Tensor, nn

from kedit_core.errors import InputError

if TYPE_CHECKING:
    from kedit_core.models import ModelView

Part: TypeAlias = Literal["block", "mlp", "mlp_out", "attn", "attn_out"]
Face: TypeAlias = Literal["input", "output"]


@frozen
class Site:
    """One face of a part of block ``layer``.

    ``mlp_out`` is the MLP's down-projection, ``attn_out`` the attention's output projection. ROME's key is
    ``Site(l, "mlp_out", "input")``, its v0 ``Site(l, "mlp", "output")``, the residual stream after block l
    ``Site(l, "block", "output")``.
    """

    layer: int
    part: Part
    side: Face = "output"


@frozen
class ModuleSite:
    """One face of any module, by its dotted name in the model."""

    name: str
    side: Face = "output"


AnySite: TypeAlias = Site | ModuleSite


@frozen(eq=False)
class Injection:
    """Change activations at chosen cells: ``x[rows, positions]`` becomes x + values, values, or x * values.

    Attributes:
        site: where.
        rows: ``[n]`` rows of the batch.
        positions: ``[n]`` columns.
        values: ``[n, width]`` or ``[width]``; cast to the activation's dtype when used, differentiable.
        how: ``add`` (repeated cells add up), ``set`` or ``scale``.
    """

    site: AnySite
    rows: Tensor
    positions: Tensor
    values: Tensor
    how: Literal["add", "set", "scale"] = "add"


def module_at(view: ModelView, site: AnySite) -> nn.Module:
    """The module a site is a face of.

    Raises:
        InputError: no such layer or module.
    """
    if isinstance(site, ModuleSite):
        try:
            return view.model.get_submodule(site.name)
        except AttributeError as exc:
            raise InputError(f"the model has no module {site.name!r}") from exc
    if not 0 <= site.layer < view.num_layers:
        raise InputError(f"there is no block {site.layer}: the model has blocks 0 to {view.num_layers - 1}")
    finder = {
        "block": view.block, "mlp": view.mlp, "mlp_out": view.mlp_out, "attn": view.attn, "attn_out": view.attn_out
    }.get(site.part)  # fmt: skip
    if finder is None:
        raise InputError(f"a site's part is block, mlp, mlp_out, attn or attn_out, not {site.part!r}")
    return finder(site.layer)
