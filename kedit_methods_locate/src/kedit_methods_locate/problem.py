"""The value search's rows as one batch, and the loss of each request on it.

Meng et al. 2022, equation 4; the essence term as in the paper's code (edited distribution first, read at the subject's
last token). Specification: ROME, section 4.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor
from torch.nn.functional import cross_entropy

from kedit_core.errors import InputError, MethodError
from kedit_core.forward import Batch, ForwardTools, Part, Site, Tail, cells
from kedit_methods_locate.hparams import LocateHyperParams
from kedit_methods_locate.rows import Rewrite


@frozen(eq=False)
class Clean:
    """What the unedited layer gives at each request's token, from the search's first pass.

    Attributes:
        keys: ``[R, J, in]`` inputs of the down-projection in each context.
        outputs: part -> ``[R, J, hidden]`` outputs of each part that is written.
    """

    keys: Tensor
    outputs: Mapping[Part, Tensor]

    @property
    def output(self) -> Tensor:
        """``[R, J, hidden]`` outputs of the only part."""
        return self.outputs[only(self.outputs)]

    @property
    def value(self) -> Tensor:
        """``[R, hidden]`` output of the only part in the bare prompt: v0 of the paper."""
        return self.value_of(only(self.outputs))

    def value_of(self, part: Part) -> Tensor:
        """``[R, hidden]`` output of a part in the bare prompt."""
        return self.outputs[part][:, 0]

    def of(self, requests: Tensor) -> Clean:
        """Those of some requests (indices)."""
        return Clean(self.keys[requests], {part: output[requests] for part, output in self.outputs.items()})


def only(parts: Mapping[Part, Tensor]) -> Part:
    """The only part of a search. Raises MethodError when it has several."""
    if len(parts) != 1:
        raise MethodError(f"this search wrote {', '.join(parts)}; say which of them is meant")
    return next(iter(parts))


@frozen(eq=False)
class Losses:
    """Terms of the loss, one per request: ``[R]``; ``nll`` is ``[R, J]``.

    Attributes:
        nll: of the target, mean over its tokens, in each context.
        kl: of the essence, with its weight.
        decay: of the vectors, with its weight.
        asked: ``[n, vocabulary]`` logits at all target positions, without a graph.
    """

    nll: Tensor
    kl: Tensor
    decay: Tensor
    asked: Tensor

    def total(self, factor: Tensor) -> Tensor:
        """``[R]`` what is minimised, the target's likelihood weighted by ``factor`` ``[R]``."""
        return factor * self.nll.mean(1) + self.kl + self.decay

    @property
    def probability(self) -> Tensor:
        """``[R]`` the target's probability per token (geometric mean), averaged over the contexts."""
        return torch.exp(-self.nll).mean(1)


@frozen(eq=False)
class Layout:
    """The rows of some requests (all with J contexts) as one batch.

    Rewriting rows come first, request after request, then one essence row for each. On the fast path rows are padded
    on the left: a request's rows end alike, so their subjects stand in one column and the shared prefix is longest; and
    the essence row ends at the subject, since nothing after it can matter to what is read there.

    Attributes:
        batch: the rows, the target's ids but the last behind each rewriting row.
        positions: ``[rows]`` column that is written.
        cells: ``[n, 2]`` where logits are read: at each target's tokens, then once for each essence.
        targets: the target's ids of each rewriting row.
    """

    batch: Batch
    positions: Tensor
    cells: Tensor
    targets: tuple[tuple[int, ...], ...]


def lay_out(forward: ForwardTools, rewrites: Sequence[Rewrite], settings: LocateHyperParams) -> Layout:
    """The requests' rows. Raises MethodError when they differ in how many contexts they have."""
    if any(len(each.rows) != len(rewrites[0].rows) for each in rewrites):
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
        targets=[target for _, target in flat] + [(forward.boundary.pad_id,)] * len(rewrites),
        prompt_lengths=[len(row.ids) for row, _ in flat] + [len(essence.ids) for essence in essences],
    )
    starts = batch.starts.tolist()
    wanted: list[tuple[int, int]] = []
    for n, (row, target) in enumerate(flat):
        first = 0 if decoder else starts[n] + len(row.ids) - 1
        wanted += [(n, first + t) for t in range(len(target))]
    for n, essence in enumerate(essences, start=len(flat)):
        read = essence.index if settings.kl_position == "subject" else essence.last
        wanted.append((n, 0 if decoder else starts[n] + read))
    positions = batch.columns([row.index for row, _ in flat] + [essence.index for essence in essences])
    return Layout(batch, positions, torch.tensor(wanted), tuple(target for _, target in flat))


class Problem:
    """The loss of some requests as a function of the vectors, on one tail.

    Args:
        forward: tools of the model; ``forward.fast`` chooses the path.
        rewrites: the requests.
        layer: block that the vectors are written into.
        settings: weights of the loss.
        parts: to whose outputs in that block a vector is added.
        loss_layer: block after which the target's likelihood is read; None for the last.
        clean: what an earlier problem of the same requests read, to be taken over instead of read again.

    Raises MethodError when the requests differ in how many contexts they have, InputError for a block or part that is
    not there.
    """

    def __init__(
        self,
        forward: ForwardTools,
        rewrites: Sequence[Rewrite],
        layer: int,
        settings: LocateHyperParams,
        parts: Sequence[Part] = ("mlp",),
        loss_layer: int | None = None,
        clean: Clean | None = None,
    ) -> None:
        self.settings, self.parts = settings, tuple(parts)
        self._forward, self._rewrites, self._layer, self._loss_layer = forward, rewrites, layer, loss_layer
        layout = lay_out(forward, rewrites, settings)
        count, contexts = len(rewrites), len(rewrites[0].rows)
        self._shape = (count, contexts)
        key = Site(layer, "mlp_out", "input")
        written = {part: Site(layer, part, "output") for part in parts}
        rows = count * contexts
        self._tail: Tail = forward.tail(
            layout.batch,
            layer,
            layout.positions,
            layout.cells,
            parts=self.parts,
            after=_depths(forward.view.num_layers, layer, loss_layer, len(layout.cells), count),
            capture=() if clean else (key, *written.values()),
            at=cells(range(rows), layout.positions[:rows]),
        )
        read = {site: x.detach().reshape(count, contexts, -1) for site, x in self._tail.captured.items()}
        self.clean = clean or Clean(read[key], {part: read[site] for part, site in written.items()})
        self._values = torch.stack([self.clean.value_of(part) for part in parts], dim=1)
        device = self._values.device  # the vectors live where the edited layer does
        # which request every row belongs to, which row every target cell, and by how much it counts there
        self._group = torch.cat([torch.arange(count).repeat_interleave(contexts), torch.arange(count)]).to(device)
        lengths = torch.tensor([len(target) for target in layout.targets])
        self._row = torch.arange(rows).repeat_interleave(lengths).to(device)
        self._share = (1 / lengths.double()).repeat_interleave(lengths).to(device, self.dtype)
        self._target = torch.tensor([i for target in layout.targets for i in target], device=device)
        self._squared = self._values.to(self.dtype).square().sum(-1)
        self.base: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """In which the vectors, the loss and the optimiser live: float32, or the model's when that is wider."""
        return torch.promote_types(self._values.dtype, torch.float32)

    @property
    def values(self) -> Tensor:
        """``[R, parts, hidden]`` clean outputs of the parts in the bare prompt."""
        return self._values.to(self.dtype)

    def of(self, requests: Tensor) -> Problem:
        """The problem of some of the requests (indices) alone, with what is known of the unedited model."""
        some = [self._rewrites[i] for i in requests.tolist()]
        clean = self.clean.of(requests)
        rest = Problem(self._forward, some, self._layer, self.settings, self.parts, self._loss_layer, clean)
        rest.base = None if self.base is None else self.base[requests]
        return rest

    def losses(self, delta: Tensor) -> Losses:
        """The loss terms with ``delta`` ``[R, parts, hidden]`` added; the first call, with zero, fixes the essence's
        base."""
        count, contexts = self._shape
        logits = self._tail.logits(delta[:, 0] if delta.shape[1] == 1 else delta, self._group).to(delta)
        asked, essence = logits[:-count], logits[-count:].log_softmax(-1)
        each = cross_entropy(asked, self._target, reduction="none") * self._share
        nll = logits.new_zeros(count * contexts).index_add(0, self._row, each)
        if self.base is None:
            self.base = essence.detach()
        kl = (essence.exp() * (essence - self.base)).sum(-1)
        # vector_norm's gradient at zero is zero, which the first step relies on
        decay = (torch.linalg.vector_norm(delta, dim=-1) / self._squared).sum(1)
        return Losses(
            nll.view(count, contexts),
            self.settings.kl_factor * kl,
            self.settings.v_weight_decay * decay,
            asked.detach(),
        )

    def greedy(self, losses: Losses) -> Tensor:
        """``[R]`` whether each token of the target is a most likely one (ties count) in every context."""
        count, contexts = self._shape
        missed = losses.asked.gather(1, self._target[:, None])[:, 0] < losses.asked.amax(1)
        rows = losses.nll.new_zeros(count * contexts).index_add(0, self._row, missed.to(losses.nll))
        return (rows.view(count, contexts) == 0).all(1)


def _depths(blocks: int, layer: int, loss_layer: int | None, cells: int, essences: int) -> Tensor | None:
    """After which block each cell is read: the essence's, which come last, always after the last one."""
    if loss_layer is None or (depth := max(loss_layer, layer)) == blocks - 1:
        return None
    if loss_layer >= blocks:
        raise InputError(f"v_loss_layer {loss_layer} is not in this model of {blocks} layers (0 to {blocks - 1})")
    return torch.tensor([depth] * (cells - essences) + [blocks - 1] * essences)
