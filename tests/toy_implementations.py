"""What the methods of toy_methods do."""

from __future__ import annotations

from typing import Any

import torch
from attrs import evolve
from torch import Tensor

from kedit_core import EditPatch, EditRequest, LowRankDelta, hookimpl
from kedit_core.contract import Choice
from kedit_core.forward import Site
from kedit_core.patches import DenseDelta


class Nudge:
    """Writes the unembedding of the target's first token under the key at the prompt's last token."""

    @hookimpl
    def compute_patch(self, context: Any, requests: Any, hparams: Any) -> EditPatch:
        return context.new_patch(self.operations(context, requests, hparams), requests)

    def operations(self, context: Any, requests: Any, hparams: Any) -> list[Any]:
        layer = hparams.layer
        found = []
        for request in requests:
            key = self.key(context, request, layer)
            word = context.tokens.pair(request.prompt, request.target_new).target_ids[0]
            value = context.adapter.lm_head.weight[word].detach().float()
            found.append(
                LowRankDelta(
                    place=context.adapter.mlp_out_weight(layer),
                    left=(hparams.strength * value / value.norm())[:, None],
                    right=(key / key.dot(key))[None, :],
                )
            )
        return found

    def key(self, context: Any, request: Any, layer: int) -> Tensor:
        site = Site(layer, "mlp_out", "input")
        rows = context.forward.batch([context.tokens.prompt(request.prompt).ids])
        return context.forward.run(rows, capture=[site]).activations[site][0, -1].float()


class MutatesWeights(Nudge):
    def operations(self, context: Any, requests: Any, hparams: Any) -> list[Any]:
        context.adapter.mlp_out(hparams.layer).weight.data.mul_(1.5)
        return super().operations(context, requests, hparams)


class LeavesAHook(Nudge):
    def operations(self, context: Any, requests: Any, hparams: Any) -> list[Any]:
        context.adapter.block(0).register_forward_hook(lambda *_: None)
        return super().operations(context, requests, hparams)


class NotDeterministic(Nudge):
    def key(self, context: Any, request: Any, layer: int) -> Tensor:
        key = super().key(context, request, layer)
        return key + 0.01 * torch.randn(key.shape, generator=torch.Generator().manual_seed(torch.seed()))


class EmitsUndeclared(Nudge):
    def operations(self, context: Any, requests: Any, hparams: Any) -> list[Any]:
        return [
            DenseDelta(place=delta.place, values=delta.left @ delta.right)
            for delta in super().operations(context, requests, hparams)
        ]


class FailsHalfway(Nudge):
    """Raises at the second request it is given in its life."""

    def __init__(self) -> None:
        self.calls = 0

    def operations(self, context: Any, requests: Any, hparams: Any) -> list[Any]:
        self.calls += 1
        if self.calls == 2:
            raise ZeroDivisionError("a bug in the method")
        return super().operations(context, requests, hparams)


class ReturnsText(Nudge):
    @hookimpl
    def compute_patch(self, context: Any, requests: Any, hparams: Any) -> Any:
        return "no patch"


class UntidyWhenStopped(Nudge):
    """Takes its hook away again, unless something fails before."""

    def operations(self, context: Any, requests: Any, hparams: Any) -> list[Any]:
        hook = context.adapter.block(0).register_forward_hook(lambda *_: None)
        found = super().operations(context, requests, hparams)
        hook.remove()
        return found

    def key(self, context: Any, request: Any, layer: int) -> Tensor:
        rows = context.forward.batch([context.tokens.prompt(request.prompt).ids])
        context.forward.run(rows, logits_at=torch.tensor([[0, 0]]))
        return super().key(context, request, layer)


class Droppable(Nudge):
    """Its deltas stand for the requests one by one, so each can be left out again."""

    @hookimpl
    def plan(self, context: Any, requests: Any, hparams: Any) -> dict[str, Any]:
        return {
            "places": [context.adapter.mlp_out_weight(hparams.layer)],
            "seconds": 0.5 * len(requests),
            "memory_bytes": 1000,
            "patch_bytes": 500 * len(requests),
            "notes": ["one delta for each fact"],
        }

    @hookimpl
    def drop_request(self, context: Any, patch: EditPatch, request_id: str) -> EditPatch | None:
        kept = [i for i, fact in enumerate(self.facts(patch)) if EditRequest(**fact).id != request_id]
        return evolve(
            patch, operations=[patch.operations[i] for i in kept], requests=[self.facts(patch)[i] for i in kept]
        )

    def facts(self, patch: EditPatch) -> list[Any]:
        return list(patch.requests)  # type: ignore[arg-type]


class DropsNothing(Droppable):
    @hookimpl
    def drop_request(self, context: Any, patch: EditPatch, request_id: str) -> EditPatch | None:
        return patch


class DropsByWriting(Droppable):
    @hookimpl
    def drop_request(self, context: Any, patch: EditPatch, request_id: str) -> EditPatch | None:
        context.adapter.mlp_out(context.hparams.layer).weight.data.mul_(1.5)
        return super().drop_request(context, patch, request_id)


class PlansByWriting(Nudge):
    @hookimpl
    def plan(self, context: Any, requests: Any, hparams: Any) -> dict[str, Any]:
        context.adapter.mlp_out(hparams.layer).weight.data.mul_(1.5)
        return {"seconds": 1.0}


class PlansOddly(Nudge):
    @hookimpl
    def plan(self, context: Any, requests: Any, hparams: Any) -> dict[str, Any]:
        return {"place": "somewhere", "seconds": float("nan"), "places": ["model.layers.1.mlp.down_proj.weight"]}


class Chooses(Nudge):
    """Looks for a layer when nobody chose one."""

    @hookimpl
    def choose_hparams(self, context: Any, requests: Any, hparams: Any, undecided: Any) -> Choice | None:
        assert context.stack.suspended_now
        if requests[0].meta.get("choose") is None:
            return None
        return Choice(values=requests[0].meta["choose"], source="a look", reason="it was asked for")


class ChoosesByWriting(Nudge):
    """Leaves a trace on the model while it looks."""

    @hookimpl
    def choose_hparams(self, context: Any) -> Choice | None:
        next(iter(context.model.parameters())).requires_grad_(False)
        context.model.eval()
        context.model.get_input_embeddings().weight.data = context.model.get_input_embeddings().weight.data.clone()
        return None
