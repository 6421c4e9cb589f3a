"""Random patches for tiny models, the weight formula written out a second time, and two small kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kedit_core.patches import (
    Base,
    BaseTensor,
    DenseDelta,
    EditPatch,
    LowRankDelta,
    MethodRef,
    ModuleKind,
    ModuleOperation,
    Operation,
    PatchStack,
    Replace,
    Route,
    RouterKind,
    RouterOperation,
    SparseDelta,
)

METHOD = MethodRef(name="test", distribution="kedit-test", version="1.0")
FACT = {"prompt": "The capital of Ruritania is", "subject": "Ruritania", "target_new": "Strelsau"}


class NearKey(ModuleKind):
    """Adds a vector from the prompt's end on when the hidden state there is near a key; decides in prefill."""

    def __init__(self, operation: ModuleOperation, live: Any) -> None:
        super().__init__(operation, live)
        if "key" not in operation.tensors:
            raise ValueError("no key")
        self.decisions = 0

    def after(self, place: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        scope, hidden = self.live.scope, output if isinstance(output, Tensor) else output[0]
        scope.require()
        if scope.phase == "prefill":
            rows = torch.arange(hidden.shape[0], device=hidden.device)
            last = hidden[rows, scope.prompt_ends.to(hidden.device)].float()
            key = self.operation.tensors["key"].to(hidden.device).float()
            scope.put((self, place), (last - key).norm(dim=-1) <= self.operation.config["radius"])
            self.decisions += 1
        near = scope.get((self, place))
        where = scope.from_prompt_end(hidden.shape[1], hidden.device) & near.unsqueeze(1)
        changed = hidden + where.unsqueeze(-1).to(hidden.dtype) * self.operation.tensors["vector"].to(hidden)
        return changed if isinstance(output, Tensor) else (changed, *output[1:])


class Whisper(RouterKind):
    """Prepends a text to prompts that contain a string."""

    def route(self, prompts: Sequence[str]) -> list[Route]:
        config = self.operation.config
        return [Route(context=config["text"] if config["when"] in prompt else "") for prompt in prompts]


KINDS: dict[str, type[Any]] = {"test.near_key": NearKey, "test.whisper": Whisper}


def near_key(
    places: Sequence[str], width: int, radius: float = 1e9, scale: float = 1.0, seed: int = 0
) -> ModuleOperation:
    generator = torch.Generator().manual_seed(seed)
    tensors = {"key": torch.zeros(width), "vector": scale * torch.randn(width, generator=generator)}
    return ModuleOperation(tuple(places), "test.near_key", 1, {"radius": radius}, tensors)


def whisper(text: str = "Listen. ", when: str = "Ruritania") -> RouterOperation:
    return RouterOperation("test.whisper", 1, {"text": text, "when": when})


def random_operation(
    name: str, shape: Sequence[int], layout: str, kind: str, seed: int, dtype: torch.dtype
) -> Operation:
    """An operation of type ``kind`` for a parameter stored as ``shape``; values include zeros of both signs."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        values = torch.randn(*size, generator=generator)
        values[torch.rand(*size, generator=generator) < 0.2] = -0.0
        return values.to(dtype)

    terms = tuple(reversed(shape)) if layout == "in_out" else tuple(shape)
    if kind == "low_rank_delta" and len(terms) == 2:
        rank = 1 + seed % 3
        return LowRankDelta(name, draw(terms[0], rank), draw(rank, terms[1]))
    if kind == "sparse_delta":
        axis = ("element", "row", "column")[seed % 3] if len(terms) == 2 else ("element", "row")[seed % 2]
        size = {"element": torch.Size(terms).numel(), "row": terms[0], "column": terms[-1]}[axis]
        indices = torch.randperm(size, generator=generator)[: max(1, size // 7)].sort().values
        count = len(indices)
        values = {"element": (count,), "row": (count, *terms[1:]), "column": (*terms[:1], count)}[axis]
        return SparseDelta(name, axis, indices, draw(*values))  # type: ignore[arg-type]
    if kind == "replace":
        return Replace(name, draw(*shape))
    return DenseDelta(name, draw(*terms))


def patch_of(stack: PatchStack, operations: Sequence[Operation], **more: Any) -> EditPatch:
    """A patch for the base under the stack."""
    return EditPatch(method=METHOD, base=stack.base_of(operations), operations=operations, **more)


def loose_patch(operations: Sequence[Operation], shapes: dict[str, tuple[int, ...]], **more: Any) -> EditPatch:
    """A patch for no model in particular."""
    tensors = {name: BaseTensor(shape=shape, layout="out_in") for name, shape in shapes.items()}
    return EditPatch(method=METHOD, base=Base(architecture="Nothing", tensors=tensors), operations=operations, **more)


def expected_weight(base: Tensor, transposed: bool, operations: Sequence[Operation]) -> Tensor:
    """The formula of docs/patch-format.md, whole tensors at a time."""
    exact = torch.promote_types(torch.float32, base.dtype)
    below, total = base, None
    for operation in operations:
        if isinstance(operation, Replace):
            below = operation.values.to(base.dtype)
            continue
        assert isinstance(operation, LowRankDelta | DenseDelta | SparseDelta)
        if isinstance(operation, LowRankDelta):
            delta = operation.left.to(exact) @ operation.right.to(exact)
        elif isinstance(operation, DenseDelta):
            delta = operation.values.to(exact)
        else:
            delta = torch.zeros(base.T.shape if transposed else base.shape, dtype=exact)
            values = operation.values.to(exact)
            for i, index in enumerate(operation.indices.tolist()):
                if operation.axis == "element":
                    delta.view(-1)[index] = values[i]
                elif operation.axis == "row":
                    delta[index] = values[i]
                else:
                    delta[:, index] = values[:, i]
        delta = delta.T if transposed else delta
        total = (torch.zeros_like(delta) if total is None else total) + delta
    return below.clone() if total is None else (below.to(exact) + total).to(base.dtype)


def bits(tensor: Tensor) -> bytes:
    """The tensor's bytes: negative zero is not zero here."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def storages(model: nn.Module) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
