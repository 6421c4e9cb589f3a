"""What is added to the selected neurons' columns of the down-projections (Dai et al. 2022, section 5.2).

Specification: KN, section 4.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.editing import EditContext
from kedit_core.errors import UnsupportedModelError
from kedit_core.models import ModelView
from kedit_core.models.parameters import bare
from kedit_core.models.storage import matrix_of
from kedit_core.patches import SparseDelta
from kedit_methods_locate.hparams.kn import Embedding, KnHyperParams
from kedit_methods_locate.kn.neurons import NeuronLayer
from kedit_methods_locate.kn.selection import NeuronId

_FIXED = 2.0
_NORM = 1.0
_PARITY_ONE = 2.0


@frozen(eq=False)
class Answers:
    """Embeddings of the old and the new answer's tokens, ``[tokens, hidden]`` in at least float32."""

    old: Tensor
    new: Tensor


def embeddings(view: ModelView, ids: Sequence[int], which: Embedding = "input") -> Tensor:
    """``[tokens, hidden]`` rows of the input embedding or of the head, in at least float32, on the CPU.

    Raises:
        UnsupportedModelError: they are packed, or of another width than the residual stream (OPT-350m).
    """
    module = view.embeddings if which == "input" else view.lm_head
    weight = matrix_of(view.model, f"{view.name_of(bare(module))}.weight")
    if weight.dim() != 2 or weight.shape[1] != view.hidden_size:
        raise UnsupportedModelError(
            f"the rows of {view.name_of(module)!r} are not vectors of the residual stream (width {view.hidden_size}), "
            "so they cannot be written into an MLP; method 'kn' cannot edit this model"
        )
    rows = weight.detach()[torch.tensor(list(ids), device=weight.device)].cpu()
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def changes(answers: Answers, columns: Tensor, hparams: KnHyperParams) -> Tensor:
    """What is added to ``columns`` ``[hidden, n]``, the unedited ones: ``[hidden, n]``."""
    if hparams.change == "erase":
        return -columns
    old, new = answers.old.to(columns), answers.new.to(columns)
    if hparams.lambda_rule == "parity_causal":
        # as it stands there: one predicted token weighs 2, one of several 1, and every new token 1
        first = -_PARITY_ONE * old[0] if len(old) == 1 else -old.sum(0)
        return (first + new.sum(0))[:, None].expand_as(columns)
    old, new = old.mean(0), new.mean(0)
    default = _FIXED if hparams.lambda_rule == "fixed" else _NORM
    take = default if hparams.lambda_old is None else hparams.lambda_old
    give = default if hparams.lambda_new is None else hparams.lambda_new
    if hparams.lambda_rule == "fixed":
        return (-take * old + give * new)[:, None].expand_as(columns)
    norms = columns.norm(dim=0)
    return -take * torch.outer(old / old.norm(), norms) + give * torch.outer(new / new.norm(), norms)


def deltas(
    context: EditContext,
    layers: Sequence[NeuronLayer],
    neurons: Collection[NeuronId],
    answers: Answers,
    hparams: KnHyperParams,
    activations: Tensor,
) -> dict[int, SparseDelta]:
    """Block -> the change of its neurons' columns, in float32 or the weight's dtype when that is wider.

    Norms are those of the base's columns. Erasing sets the columns that are on the model now to zero. ``activations``
    ``[blocks, neurons]`` give the signs for ``follow_sign``.
    """
    chosen: dict[int, list[int]] = {}
    for block, index in sorted(neurons):
        chosen.setdefault(block, []).append(index)
    made = {}
    for block, indices in chosen.items():
        place = layers[block].weight
        live = matrix_of(context.model, place).detach()
        weight = live if hparams.change == "erase" else context.stack.base(place)
        which = torch.tensor(indices)
        values = changes(answers, _columns(context, place, weight, which), hparams)
        if hparams.follow_sign:
            values = values * activations[block, which.to(activations.device)].sign().to(values)
        made[block] = SparseDelta(place, "column", which, values)
    return made


def joined(parts: Sequence[Mapping[int, SparseDelta]]) -> list[SparseDelta]:
    """The deltas of several requests as one for each block, in the blocks' order; equal columns add up."""
    blocks = sorted({block for part in parts for block in part})
    out = []
    for block in blocks:
        here = [part[block] for part in parts if block in part]
        if len(here) == 1:
            out.append(here[0])
            continue
        indices = torch.unique(torch.cat([each.indices for each in here]))
        values = here[0].values.new_zeros(len(here[0].values), len(indices))
        for each in here:
            values.index_add_(1, torch.searchsorted(indices, each.indices), each.values)
        out.append(SparseDelta(here[0].place, "column", indices, values))
    return out


def _columns(context: EditContext, place: str, weight: Tensor, indices: Tensor) -> Tensor:
    """``[hidden, n]`` columns of a weight in [out, in] terms, in at least float32, on the CPU."""
    if not weight.is_floating_point() or weight.dim() != 2:
        raise UnsupportedModelError(f"{place} is stored packed; load the model unquantised to edit its columns")
    inward = 0 if context.adapter.layout(place) == "in_out" else 1
    found = weight.index_select(inward, indices.to(weight.device)).cpu()
    found = found if inward else found.t()
    return found.to(torch.promote_types(found.dtype, torch.float32))
