"""The value search's rows as one batch, and the loss of each request on it.

Meng et al. 2022, equation 4; the essence term as in the paper's code (edited distribution first, read at the subject's
last token). Specification: ROME, section 4.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor
from torch.nn.functional import cross_entropy

from kedit_core.errors import MethodError
from kedit_core.forward import ForwardTools, Site, Tail
from kedit_methods_locate.hparams import LocateHyperParams
from kedit_methods_locate.rows import Rewrite


@frozen(eq=False)
class Clean:
    """What the unedited layer gives at each request's token, from the search's first pass.

    Attributes:
        keys: ``[R, J, in]`` inputs of the down-projection in each context.
        outputs: ``[R, J, hidden]`` its outputs.
    """

    keys: Tensor
    outputs: Tensor

    @property
    def value(self) -> Tensor:
        """``[R, hidden]`` output in the bare prompt: v0 of the paper."""
        return self.outputs[:, 0]


@frozen(eq=False)
class Losses:
    """Terms of the loss, one per request: ``[R]``; ``nll`` is ``[R, J]``."""

    nll: Tensor
    kl: Tensor
    decay: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimised, per request."""
        return self.nll.mean(1) + self.kl + self.decay

    @property
    def probability(self) -> Tensor:
        """``[R]`` the target's probability per token (geometric mean), averaged over the contexts."""
        return torch.exp(-self.nll).mean(1)


class Problem:
    """The rows of some requests (all with J contexts), laid out for a tail.

    Rewriting rows come first, request after request, then one essence row for each. On the fast path rows are padded
    on the left: a request's rows end alike, so their subjects stand in one column and the shared prefix is longest; and
    the essence row ends at the subject, since nothing after it can matter to what is read there.

    Raises MethodError when the requests differ in how many contexts they have.

    Args:
        forward: tools of the model; ``forward.fast`` chooses the path.
        rewrites: the requests.
        layer: block that the vector is written into.
        settings: weights of the loss.
        clean: what an earlier problem of the same requests read, to be taken over instead of read again.
    """

    def __init__(
        self,
        forward: ForwardTools,
        rewrites: Sequence[Rewrite],
        layer: int,
        settings: LocateHyperParams,
        clean: Clean | None = None,
    ) -> None:
        self.settings = settings
        count, contexts = len(rewrites), len(rewrites[0].rows)
        self._shape = (count, contexts)
        if any(len(each.rows) != contexts for each in rewrites):
            raise MethodError("requests of one value search must have equally many contexts; search them apart")
        decoder = forward.view.is_encoder_decoder
        trimmed = forward.fast and not decoder
        essences = [r.essence.cut() if trimmed and settings.kl_position == "subject" else r.essence for r in rewrites]
        flat = [(row, r.target) for r in rewrites for row in r.rows]
        followed = [() if decoder else target[:-1] for _, target in flat]
        ids = [(*row.ids, *more) for (row, _), more in zip(flat, followed, strict=True)]
        batch = forward.batch(
            [*ids, *(essence.ids for essence in essences)],
            side="left" if trimmed else "right",
            targets=[target for _, target in flat] + [(forward.boundary.pad_id,)] * count,
            prompt_lengths=[len(row.ids) for row, _ in flat] + [len(essence.ids) for essence in essences],
        )
        positions = batch.columns([row.index for row, _ in flat] + [essence.index for essence in essences])
        starts = batch.starts.tolist()
        cells: list[tuple[int, int]] = []
        for n, (row, target) in enumerate(flat):
            first = 0 if decoder else starts[n] + len(row.ids) - 1
            cells += [(n, first + t) for t in range(len(target))]
        for n, essence in enumerate(essences, start=len(flat)):
            read = essence.index if settings.kl_position == "subject" else essence.last
            cells.append((n, 0 if decoder else starts[n] + read))
        key, output = Site(layer, "mlp_out", "input"), Site(layer, "mlp_out", "output")
        rewriting = torch.arange(len(flat))
        self._tail: Tail = forward.tail(
            batch,
            layer,
            positions,
            torch.tensor(cells),
            capture=() if clean else (key, output),
            at=torch.stack([rewriting, positions.cpu()[: len(flat)]], dim=1),
        )
        read_at = self._tail.captured
        self.clean = clean or Clean(*(read_at[site].detach().reshape(count, contexts, -1) for site in (key, output)))
        device = self.clean.outputs.device  # the vector lives where the edited layer does
        # which request every row belongs to, which row every target cell, and by how much it counts there
        self._group = torch.cat([torch.arange(count).repeat_interleave(contexts), torch.arange(count)]).to(device)
        lengths = torch.tensor([len(target) for _, target in flat])
        self._row = torch.arange(len(flat)).repeat_interleave(lengths).to(device)
        self._share = (1 / lengths.double()).repeat_interleave(lengths).to(device, self.dtype)
        self._target = torch.tensor([i for _, target in flat for i in target], device=device)
        self._squared = self.clean.value.to(self.dtype).square().sum(1)
        self.base: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """In which the vector, the loss and the optimiser live: float32, or the model's when that is wider."""
        return torch.promote_types(self.clean.outputs.dtype, torch.float32)

    def losses(self, delta: Tensor) -> Losses:
        """The loss terms with ``delta`` ``[R, hidden]`` added; the first call, with zero, fixes the essence's base."""
        count, contexts = self._shape
        logits = self._tail.logits(delta, self._group).to(delta)
        asked, essence = logits[:-count], logits[-count:].log_softmax(-1)
        each = cross_entropy(asked, self._target, reduction="none") * self._share
        nll = logits.new_zeros(count * contexts).index_add(0, self._row, each)
        if self.base is None:
            self.base = essence.detach()
        kl = (essence.exp() * (essence - self.base)).sum(-1)
        # vector_norm's gradient at zero is zero, which the first step relies on
        decay = torch.linalg.vector_norm(delta, dim=1) / self._squared
        return Losses(nll.view(count, contexts), self.settings.kl_factor * kl, self.settings.v_weight_decay * decay)
