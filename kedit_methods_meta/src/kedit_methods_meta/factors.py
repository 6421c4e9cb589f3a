"""Factors of the fine-tuning gradient: inputs of the edited modules, and gradients at their outputs.

For a linear module ``y = W x + b`` and a loss L, ``dL/dW = sum_r delta_r x_r^T`` over all rows r of batch and tokens,
``x_r`` the module's input and ``delta_r`` the gradient at its output (MEND, Mitchell et al. 2022, section 3.1). So the
gradient of all edits is had from one backward pass down to the lowest edited module, and never formed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.errors import MethodError
from kedit_core.forward import ForwardTools, Pair, Side, buckets
from kedit_methods_meta.places import Place
from kedit_methods_meta.questions import Questions, questions, row_length

Reduction: TypeAlias = Literal["edit_mean", "batch_mean", "portion_mean", "sum"]
Rows: TypeAlias = Literal["nonzero", "answer", "attended"]

_COPIES = 16  # activations of hidden size that a block keeps of each token for its backward pass, roughly


@frozen(eq=False)
class Factors:
    """Factors of one weight's gradient, float32 (or the model's dtype where that is wider), detached.

    Attributes:
        inputs: ``[R, in]``, the module's input at each kept token.
        gradients: ``[R, out]``, the loss's gradient at its output there.
        edit: ``[R]``, which pair each row is of; ascending.
    """

    inputs: Tensor
    gradients: Tensor
    edit: Tensor

    @property
    def gradient(self) -> Tensor:
        """The weight's gradient formed whole, ``[out, in]``."""
        return self.gradients.T @ self.inputs

    def of(self, edit: Tensor) -> Factors:
        """The same rows under other numbers: those of edit ``i`` are then of ``edit[i]``."""
        return Factors(self.inputs, self.gradients, edit.to(self.edit.device)[self.edit])

    def where(self, keep: Tensor | slice) -> Factors:
        """The rows for which ``keep`` ``[R]`` is true, or of a slice."""
        return Factors(self.inputs[keep], self.gradients[keep], self.edit[keep])


def gradient_factors(
    forward: ForwardTools,
    pairs: Sequence[Pair],
    places: Sequence[Place],
    *,
    reduction: Reduction = "edit_mean",
    rows: Rows = "nonzero",
    side: Side = "right",
    portion: int | None = None,
    check: bool = True,
) -> dict[str, Factors]:
    """Factors of the gradient of the answers' negative log-likelihood, by the name of each place's weight.

    Args:
        forward: tools of the model, which is left as found.
        pairs: what the model is told, as ids.
        reduction: ``edit_mean`` adds up each pair's mean over its tokens, so that a pair's factors do not depend on
            its company; ``batch_mean`` is the mean over the tokens of all pairs, ``portion_mean`` over those of
            each portion; ``sum`` adds up all tokens.
        rows: which tokens are kept: ``nonzero`` those with an input and a gradient that are not all zero (pads and what
            follows the last asked token have none); ``answer`` those at which a token of the answer is predicted
            (everything that is attended in an encoder); ``attended`` all but pads.
        portion: pairs that are run together; None for as many as fit ``forward.memory_budget``.
        check: refuse gradients that are not finite; a training leaves such a micro-batch out instead.

    Memory: one portion's activations from the lowest place up, and the factors.

    Raises:
        MethodError: a gradient that is not finite.
    """
    total = sum(len(pair.target_ids) for pair in pairs)
    found: dict[str, list[Factors]] = {place.name: [] for place in places}
    for group in portions(forward, pairs, portion):
        asked = questions(forward, [pairs[i] for i in group], side=side)
        lengths = [len(pairs[i].target_ids) for i in group]
        counts = {"edit_mean": lengths, "batch_mean": [total], "portion_mean": [sum(lengths)], "sum": [1]}[reduction]
        share = 1 / torch.tensor(counts, dtype=torch.float64).expand(len(group))
        here = pass_factors(forward, asked, places, weighted(asked, share[asked.row.cpu()]), rows)
        if check:
            _check(here)
        numbers = torch.tensor(group, device=asked.row.device)
        for name, one in here.items():
            found[name].append(one.of(numbers))
    return {name: _joined(parts) for name, parts in found.items()}


def portions(forward: ForwardTools, pairs: Sequence[Pair], portion: int | None = None) -> list[list[int]]:
    """Pairs by number in groups that are run together; ``portion`` of them in order, or as many as the budget holds."""
    if portion is not None:
        return [list(range(start, min(start + portion, len(pairs)))) for start in range(0, len(pairs), portion)]
    lengths = [row_length(forward, pair) for pair in pairs]
    if forward.memory_budget is None:
        return [list(range(len(pairs)))]
    view = forward.view
    a_token = 4 * view.num_layers * (_COPIES * view.hidden_size + 4 * view.mlp_size(0)) + 8 * view.vocab_size
    return buckets(lengths, max(forward.memory_budget // a_token, 1))


def weighted(asked: Questions, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """A scalar of logits ``[n, vocabulary]`` at an asker's cells: the negative log-likelihood of the answers' tokens,
    each times its ``weight`` ``[n]``; in float32 at least."""
    where = asked.asked
    tokens, share = asked.tokens[where], weight[where.to(weight.device)]

    def loss(logits: Tensor) -> Tensor:
        kept = logits[where.to(logits.device)]
        wide = kept.to(torch.promote_types(kept.dtype, torch.float32)).log_softmax(-1)
        picked = wide.gather(1, tokens.to(wide.device).unsqueeze(1)).squeeze(1)
        return -(picked * share.to(wide)).sum()

    return loss


def pass_factors(
    forward: ForwardTools,
    asked: Questions,
    places: Sequence[Place],
    loss: Callable[[Tensor], Tensor],
    rows: Rows = "nonzero",
    logits: Callable[[Tensor], None] | None = None,
) -> dict[str, Factors]:
    """Factors of one batch and any loss of its logits; ``edit`` is the row of the batch.

    ``logits`` is shown the logits ``[n, vocabulary]`` at the cells, so that nothing has to be run again for them.
    """
    run = forward.run(
        asked.batch,
        capture=[place.input for place in places],
        logits_at=asked.cells,
        output_gradients=[place.output for place in places],
        loss=loss,
    )
    if logits is not None and run.logits is not None:
        logits(run.logits)
    masks = _Masks(forward, asked, rows)
    found = {}
    for place in places:
        inputs, gradients = run.activations[place.input], run.gradients[place.output]
        found[place.name] = masks.kept(place, inputs, gradients)
    return found


class _Masks:
    """Which tokens of a batch are kept."""

    def __init__(self, forward: ForwardTools, asked: Questions, rows: Rows) -> None:
        self.rows, batch = rows, asked.batch
        attended = batch.attention_mask.bool()
        answer = torch.zeros_like(attended)
        if batch.decoder_input_ids is None:
            decoder = attended
        else:
            decoder = torch.zeros_like(batch.decoder_input_ids, dtype=torch.bool)
            decoder[asked.cells[:, 0], asked.cells[:, 1]] = True
            answer = torch.zeros_like(decoder)
        cells = asked.cells[asked.asked]
        answer[cells[:, 0], cells[:, 1]] = True
        self.encoder = attended
        self.decoder = answer if rows == "answer" else decoder

    def kept(self, place: Place, inputs: Tensor, gradients: Tensor) -> Factors:
        mask = (self.encoder if place.encoder else self.decoder).to(inputs.device)
        wide = torch.promote_types(inputs.dtype, torch.float32)
        edit = torch.arange(mask.shape[0], device=mask.device).unsqueeze(1).expand(mask.shape)[mask]
        found = Factors(inputs[mask].to(wide), gradients[mask].to(wide), edit)
        if self.rows == "nonzero":
            found = found.where((found.inputs != 0).any(-1) & (found.gradients != 0).any(-1))
        return found


def _check(factors: Mapping[str, Factors]) -> None:
    for name, each in factors.items():
        if not bool(torch.isfinite(each.gradients).all()):
            raise MethodError(
                f"the gradient at {name} is not finite; load the model in float32 or bfloat16, or leave out the "
                "request whose answer the model rules out"
            )


def _joined(parts: Sequence[Factors]) -> Factors:
    """Portions' rows, edit by edit."""
    whole = Factors(*(torch.cat([getattr(each, name) for each in parts]) for name in ("inputs", "gradients", "edit")))
    order = torch.argsort(whole.edit, stable=True)
    return Factors(whole.inputs[order], whole.gradients[order], whole.edit[order])
