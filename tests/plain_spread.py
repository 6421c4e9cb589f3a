"""The spreading loop by the letter: whole forwards one row at a time, explicit inverses, weights written in place.

Written from the sheets of MEMIT, PMET, EMMET and AlphaEdit; nothing of the package is used but the adapter's places.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kedit_core import Editor, EditPatch, EditRequest
from kedit_core.models import AdapterRegistry
from kedit_core.models.builtin import plugin

Update = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, keys [in, n], gap [out, n]) -> delta [out, in]."""


def matrix_of(module: nn.Module) -> Tensor:
    """A projection's weight as ``[out, in]``, a view to write into; GPT-2's Conv1D stores it the other way round."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.T if type(module).__name__ == "Conv1D" else weight


def deltas_of(patch: EditPatch) -> dict[str, Tensor]:
    """Place -> ``[out, in]``."""
    return {op.place: op.left @ op.right for op in patch.operations}  # type: ignore[union-attr]


class PlainSpread:
    """A copy of an Editor's model that is edited in place."""

    def __init__(self, editor: Editor, requests: Sequence[EditRequest], templates: Sequence[str]) -> None:
        with editor.stack.suspended():
            self.model = copy.deepcopy(editor.model)
        self.base = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        self.view = AdapterRegistry(plugin.register_adapters()).for_model(self.model)
        self.tokenizer = editor.tokens.tokenizer
        self.rows = [[self._row(template, request) for template in templates] for request in requests]

    def _row(self, template: str, request: EditRequest) -> tuple[list[int], int]:
        text = template.replace("{}", request.prompt)
        upto = template.replace("{}", request.prompt.split(request.subject or "")[0] + (request.subject or ""))
        last = len(upto.rstrip()) - 1 if template.endswith("{}") else text.index(request.subject or "")
        encoded = self.tokenizer(text, return_offsets_mapping=True)
        at = max(i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a <= last < b)
        return list(encoded["input_ids"]), at

    def _read(self, row: tuple[list[int], int], module: Any, side: str) -> Tensor:
        seen: list[Tensor] = []
        ids, at = row

        def note_input(_: Any, args: tuple[Tensor, ...]) -> None:
            seen.append(args[0].reshape(len(ids), -1)[at].detach().clone())

        def note_output(_: Any, __: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            seen.append(hidden.reshape(len(ids), -1)[at].detach().clone())

        handle = (
            module.register_forward_pre_hook(note_input)
            if side == "input"
            else module.register_forward_hook(note_output)
        )
        try:
            with torch.no_grad():
                start = {"decoder_input_ids": torch.tensor([[0]])} if self.view.is_encoder_decoder else {}
                self.model(torch.tensor([ids]), **start)
        finally:
            handle.remove()
        return seen[0]

    def write(self, patch: EditPatch) -> None:
        """A patch into the weights."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for place, delta in deltas_of(patch).items():
                weight = parameters[place]
                weight.add_(delta.T if patch.base.tensors[place].layout == "in_out" else delta)

    def keys(self, layer: int, module: nn.Module | None = None) -> Tensor:
        """``[in, n]`` of the MLP's projection or another: half the bare prompt's key, half the mean of the others'."""
        columns = []
        for rows in self.rows:
            each = [self._read(row, module or self.view.mlp_out(layer), "input") for row in rows]
            others = torch.stack(each[1:]).mean(0) if len(each) > 1 else each[0]
            columns.append(0.5 * each[0] + 0.5 * others)
        return torch.stack(columns, dim=1)

    def states(self, module: Any) -> Tensor:
        """``[out, n]`` outputs of a module at each fact's token, bare prompt."""
        return torch.stack([self._read(rows[0], module, "output") for rows in self.rows], dim=1)

    def spread(
        self,
        layers: Sequence[int],
        targets: Tensor,
        update: Update,
        *,
        module: Any = None,
        share: Callable[[int], float] = lambda left: 1 / left,
    ) -> Mapping[int, Tensor]:
        """Deltas ``[out, in]`` by layer; ``targets`` ``[n, hidden]``; ``share`` of how many layers are left."""
        deltas = {}
        self.gaps = []
        module = module or self.view.block(layers[-1])
        for turn, layer in enumerate(layers):
            keys = self.keys(layer)
            gap = targets.T - self.states(module)
            self.gaps.append(gap)
            deltas[layer] = update(layer, keys.double(), gap.double() * share(len(layers) - turn))
            with torch.no_grad():
                self.view.down_weight(layer).add_(deltas[layer])
        return deltas


def both(
    plain: PlainSpread, layers: Sequence[int], targets: Mapping[str, Tensor], update: Callable[..., Tensor]
) -> dict[tuple[int, str], Tensor]:
    """PMET with several projections, in the order of ``targets``; (layer, projection) -> delta.

    Where attention and MLP see the same input, the keys of both are read before either is written. ``update`` takes
    (layer, projection), keys and gap.
    """
    deltas = {}
    for turn, layer in enumerate(layers):
        left = len(layers) - turn
        groups = [list(targets)] if plain.view.parallel else [[each] for each in targets]
        for group in groups:
            made = []
            for name in group:
                module = getattr(plain.view, name)(layer)
                gap = targets[name].T - plain.states(getattr(plain.view, name)(layers[-1]))
                delta = update((layer, name), plain.keys(layer, module), gap / left**0.5)
                made.append((module, delta))
                deltas[layer, name] = delta
            with torch.no_grad():
                for module, delta in made:
                    matrix_of(module).add_(delta)
    return deltas


def ridge(matrices: Mapping[Any, Tensor], weight: float, past: Mapping[Any, Tensor] | None = None) -> Update:
    """MEMIT's update with an explicit inverse; ``past`` keys ``[in, M]`` by layer."""

    def update(layer: Any, keys: Tensor, gap: Tensor) -> Tensor:
        system = weight * matrices[layer] + keys @ keys.T
        if past is not None and layer in past:
            system = system + past[layer] @ past[layer].T
        return gap @ keys.T @ torch.linalg.inv(system)

    return update


def equality(matrices: Mapping[int, Tensor], alpha: float, mu: float, epsilon: float) -> Update:
    """EMMET's update with explicit inverses."""

    def update(layer: int, keys: Tensor, gap: Tensor) -> Tensor:
        inverse = torch.linalg.inv(alpha * matrices[layer] + mu * torch.eye(len(keys), dtype=keys.dtype))
        system = keys.T @ inverse @ keys + epsilon * torch.eye(keys.shape[1], dtype=keys.dtype)
        return gap @ torch.linalg.inv(system) @ keys.T @ inverse

    return update


def nullspace(
    matrices: Mapping[int, Tensor],
    threshold: float,
    l2: float,
    past: Mapping[int, Tensor] | None = None,
    weight: float = 0.0,
) -> Update:
    """AlphaEdit's update: a projector formed whole, and a general solve of a matrix without symmetry.

    As published when the weight of the statistic is 0.
    """

    def update(layer: int, keys: Tensor, gap: Tensor) -> Tensor:
        vectors, values, _ = torch.linalg.svd(matrices[layer])
        inside = vectors[:, values < threshold]
        projector = inside @ inside.T
        sums = keys @ keys.T + weight * matrices[layer]
        if past is not None and layer in past:
            sums = sums + past[layer] @ past[layer].T
        system = projector @ sums + l2 * torch.eye(len(keys), dtype=keys.dtype)
        return torch.linalg.solve(system, projector @ keys @ gap.T).T

    return update
