"""A plain, slow value search for MEMIT and PMET, written straight from their sheets.

Full forwards with hooks, torch's own Adam, one row at a time, no padding; logits after an earlier block by the final
norm and the head called here. For decoder-only models whose head is a norm and a projection, and for T5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from attrs import frozen
from locate_tools import TEMPLATES
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from transformers import PreTrainedModel

from kedit_core import EditRequest
from kedit_core.forward import Part, TokenBoundary
from kedit_core.models import ModelView

MEMIT_PARTS: tuple[Part, ...] = ("block",)
PMET_PARTS: tuple[Part, ...] = ("mlp_out", "attn_out")


@frozen(eq=False)
class PlainValues:
    """What the plain search found for one request.

    Attributes:
        deltas: part -> ``[hidden]``.
        values: part -> ``[hidden]`` clean output in the bare prompt; ``targets`` with the vector added.
        keys: ``[J, in]`` inputs of the down-projection.
        outputs: part -> ``[J, hidden]`` clean outputs.
        losses, factors: of each forward pass.
    """

    deltas: Mapping[Part, Tensor]
    values: Mapping[Part, Tensor]
    keys: Tensor
    outputs: Mapping[Part, Tensor]
    losses: list[float]
    factors: list[float]

    @property
    def targets(self) -> dict[Part, Tensor]:
        return {part: self.values[part] + delta for part, delta in self.deltas.items()}


class PlainSearch:
    """The search of one layer's ``parts`` (outputs of ``block``, ``mlp_out``, ``attn_out``)."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: TokenBoundary,
        view: ModelView,
        layer: int,
        parts: Sequence[Part] = MEMIT_PARTS,
        templates: Sequence[str] = TEMPLATES,
    ) -> None:
        self.model, self.tokens, self.view = model, tokens, view
        self.layer, self.parts, self.templates = layer, tuple(parts), tuple(templates)

    def row(self, text: str, upto: str) -> tuple[list[int], int]:
        """Ids of a text and the token of the last character of ``upto``."""
        encoded = self.tokens.tokenizer(text, return_offsets_mapping=True)
        last = text.index(upto) + len(upto) - 1
        at = max(i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a <= last < b)
        return list(encoded["input_ids"]), at

    def forward(
        self,
        ids: Sequence[int],
        at: int,
        target: Sequence[int] = (),
        deltas: Mapping[Part, Tensor] | None = None,
        after: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits at every column, those of the target (all but its last id, behind the ids) included, and the key and
        the clean outputs at token ``at``."""
        seen: dict[str, Tensor] = {}
        streams: list[Tensor] = []

        def part_hook(part: Part) -> object:
            def hook(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> object:
                x = output if isinstance(output, Tensor) else output[0]
                flat = x.reshape(-1, x.shape[-1]).clone()
                seen[part] = flat[at].detach().clone()
                if deltas is not None:
                    flat[at] = flat[at] + deltas[part]
                new = flat.view_as(x)
                return new if isinstance(output, Tensor) else (new, *output[1:])

            return hook

        def key_hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen["key"] = args[0].reshape(-1, args[0].shape[-1])[at].detach()

        def stream_hook(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
            streams.append(output if isinstance(output, Tensor) else output[0])

        handles = [getattr(self.view, part)(self.layer).register_forward_hook(part_hook(part)) for part in self.parts]
        handles.append(self.view.mlp_out(self.layer).register_forward_pre_hook(key_hook))
        if after is not None:
            handles.append(self.view.block(after).register_forward_hook(stream_hook))
        try:
            if self.view.is_encoder_decoder:
                fed = [self.model.config.decoder_start_token_id, *target[:-1]]
                out = self.model(input_ids=torch.tensor([list(ids)]), decoder_input_ids=torch.tensor([fed]))
            else:
                out = self.model(torch.tensor([[*ids, *target[:-1]]]))
        finally:
            for handle in handles:
                handle.remove()
        if after is None:
            return out.logits[0], seen
        hidden = streams[0][0]
        for norm in self.view.final_norm:
            hidden = norm(hidden)
        return self.view.lm_head(hidden), seen

    def asked(self, ids: Sequence[int], target: Sequence[int]) -> slice:
        """The columns that predict the target."""
        first = 0 if self.view.is_encoder_decoder else len(ids) - 1
        return slice(first, first + len(target))

    def find(
        self,
        request: EditRequest,
        *,
        steps: int = 20,
        lr: float = 0.5,
        decay: float = 0.5,
        kl_factor: float = 0.0625,
        clamp: float | None = 0.75,
        stop: float = 0.05,
        loss_layer: int | None = None,
        factor: float | None = None,
        kl_stop: float = 0.01,
    ) -> PlainValues:
        """The search; with ``factor`` (nll_loss_factor) PMET's control flow."""
        subject = request.subject or ""
        upto = request.prompt.split(subject)[0] + subject
        rows = [self.row(t.replace("{}", request.prompt), t.replace("{}", upto)) for t in self.templates]
        target = self.tokens.pair(request.prompt, request.target_new).target_ids
        essence, essence_at = self.row(f"{subject} is a", subject)
        last = 0 if self.view.is_encoder_decoder else essence_at
        after = None if loss_layer is None else max(loss_layer, self.layer)
        with torch.no_grad():
            clean = [self.forward(ids, at)[1] for ids, at in rows]
            before = log_softmax(self.forward(essence, essence_at)[0][last], -1)
        outputs = {part: torch.stack([seen[part] for seen in clean]) for part in self.parts}
        values = {part: output[0] for part, output in outputs.items()}
        deltas = {part: torch.zeros_like(value).requires_grad_() for part, value in values.items()}
        adam = torch.optim.Adam(list(deltas.values()), lr=lr)
        now = 1.0 if factor is None else factor
        losses: list[float] = []
        factors: list[float] = []
        for step in range(steps):
            nll, greedy = torch.zeros((), dtype=before.dtype), True
            for ids, at in rows:
                logits = self.forward(ids, at, target, deltas, after)[0][self.asked(ids, target)].log_softmax(-1)
                picked = logits[torch.arange(len(target)), torch.tensor(target)]
                nll = nll - picked.mean() / len(rows)
                greedy = greedy and bool((picked >= logits.max(-1).values).all())
            edited = log_softmax(self.forward(essence, essence_at, (), deltas)[0][last], -1)
            kl = kl_factor * (edited.exp() * (edited - before)).sum()
            lengths = [
                (d.norm() if bool(d.detach().any()) else (d * 0).sum()) / values[part].norm() ** 2
                for part, d in deltas.items()
            ]
            loss = now * nll + kl + decay * torch.stack(lengths).sum()
            losses.append(float(loss.detach()))
            factors.append(now)
            if losses[-1] < stop:
                break
            if factor is not None:
                now = 0.1 * factor if greedy else factor
                if greedy and float(kl.detach()) <= kl_stop:
                    break
            if step == steps - 1:
                break
            adam.zero_grad()
            loss.backward(inputs=list(deltas.values()))  # type: ignore[no-untyped-call]
            adam.step()
            with torch.no_grad():
                for part, d in deltas.items():
                    if clamp is not None and float(d.norm()) > clamp * float(values[part].norm()):
                        d.mul_(clamp * values[part].norm() / d.norm())
        return PlainValues(
            deltas={part: d.detach() for part, d in deltas.items()},
            values=values,
            keys=torch.stack([seen["key"] for seen in clean]),
            outputs=outputs,
            losses=losses,
            factors=factors,
        )
