"""For any history of apply and remove, weights are bit-identical to what remains, in order, on the untouched base."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from attrs import define, field
from core.patches.patch_kit import (
    KINDS,
    bits,
    expected_weight,
    near_key,
    patch_of,
    random_operation,
    storages,
    whisper,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kedit_core.patches import EditPatch, LowRankDelta, PatchStack
from kedit_core.patches.operations import WEIGHT_OPERATIONS
from kedit_core.testing.tiny import tiny_model

pytestmark = pytest.mark.slow

IDS = torch.arange(2, 14).reshape(2, 6)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PLACES = {
    "gpt2": (
        "transformer.h.0.mlp.c_proj.weight",
        "transformer.h.1.mlp.c_fc.weight",
        "transformer.h.1.mlp.c_proj.bias",
        "transformer.wte.weight",
    ),
    "llama": (
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ),
}
BLOCKS = {"gpt2": ("transformer.h.0", "transformer.h.1"), "llama": ("model.layers.0", "model.layers.1")}


@define
class World:
    """A model with a pool of patches; everything about it is as at first between histories."""

    family: str
    model: Any
    stack: PatchStack
    pool: list[EditPatch]
    base: dict[str, Tensor]
    addresses: dict[str, int]
    on: list[tuple[EditPatch, str]] = field(factory=list)

    def check(self, extra: tuple[Any, ...] = ()) -> None:
        """Weights are the formula's; everything else is untouched."""
        wanted: dict[str, list[Any]] = {}
        for patch, way in self.on:
            for operation in patch.operations:
                attached = way == "attached" and isinstance(operation, LowRankDelta)
                if isinstance(operation, WEIGHT_OPERATIONS) and not attached:
                    wanted.setdefault(operation.place, []).append(operation)
        for operation in extra:
            wanted.setdefault(operation.place, []).append(operation)
        for name, parameter in self.model.named_parameters():
            if name in wanted:
                transposed = self.stack.base_of([name]).tensors[name].layout == "in_out"
                assert bits(parameter) == bits(expected_weight(self.base[name], transposed, wanted[name])), name
            else:
                assert parameter.data_ptr() == self.addresses[name], name
        assert [entry.patch.id for entry in self.stack.patches] == [patch.id for patch, _ in self.on]

    def logits(self) -> Tensor:
        with torch.no_grad():
            return self.model(input_ids=IDS, use_cache=False).logits


def can_attach(patch: EditPatch) -> bool:
    low_rank = [op for op in patch.operations if isinstance(op, LowRankDelta)]
    return all("wte" not in op.place and "wpe" not in op.place for op in low_rank)


def make_world(family: str, dtype: torch.dtype) -> World:
    model = tiny_model(family, dtype=dtype)
    stack = PatchStack.of(model, kinds=KINDS)
    described = stack.base_of(PLACES[family]).tensors
    kinds = ("low_rank_delta", "dense_delta", "sparse_delta", "replace")
    pool = []
    for seed in range(16):
        names = [PLACES[family][(seed + step) % 4] for step in range(1 + seed % 3)]
        operations: list[Any] = [
            random_operation(
                name,
                described[name].shape,
                described[name].layout,
                kinds[(seed + 2 * i) % 4 if seed < 12 else 0],
                seed * 7 + i,
                (torch.float32, torch.float64, torch.bfloat16)[(seed + i) % 3],
            )
            for i, name in enumerate(names)
        ]
        if seed % 5 == 0:
            operations.append(near_key(BLOCKS[family][: 1 + seed % 2], 32, scale=0.1, seed=seed))
        if seed % 7 == 0:
            operations.append(whisper(f"{seed}. "))
        pool.append(EditPatch.from_bytes(patch_of(stack, operations, seed=seed).to_bytes()))
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return World(family, model, stack, pool, base, storages(model))


@pytest.fixture(
    scope="module", params=[(f, d) for f in PLACES for d in DTYPES], ids=lambda p: f"{p[0]}-{str(p[1])[6:]}"
)
def world(request: pytest.FixtureRequest) -> World:
    return make_world(*request.param)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["apply", "apply", "apply", "attach", "remove", "provisional", "suspended", "reset"]),
        st.integers(0, 15),
        st.integers(0, 15),
    ),
    max_size=14,
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_any_history(world: World, steps: list[tuple[str, int, int]]) -> None:
    before = world.logits()
    try:
        for step in steps:
            take(world, *step)
            world.check()
        routes = world.stack.route(["in Ruritania"])[0].context
        texts = [op.config["text"] for patch, _ in world.on for op in patch.operations if op.type == "router"]
        assert routes == "".join(texts)
        # what remains, put on a fresh model, computes the very same
        edited = world.logits()
        with world.stack.suspended():
            assert torch.equal(world.logits(), before) and storages(world.model) == world.addresses
            fresh = copy.deepcopy(world.model)
        other = PatchStack.of(fresh, kinds=KINDS)
        for patch, way in world.on:
            other.apply(patch, way=way)  # type: ignore[arg-type]
        with torch.no_grad():
            assert torch.equal(fresh(input_ids=IDS, use_cache=False).logits, edited)
    finally:
        world.stack.clear()
        world.on.clear()
    assert storages(world.model) == world.addresses
    assert torch.equal(world.logits(), before)
    assert all(bits(parameter) == bits(world.base[name]) for name, parameter in world.model.named_parameters())


def take(world: World, step: str, one: int, two: int) -> None:
    """One step of a history, kept in step with the record of what is on."""
    stack, patch = world.stack, world.pool[one]
    is_on = any(patch.id == other.id for other, _ in world.on)
    if step in ("apply", "attach") and not is_on:
        way = "attached" if step == "attach" and can_attach(patch) else "merged"
        stack.apply(patch, way=way)  # type: ignore[arg-type]
        world.on.append((patch, way))
    elif step == "remove" and world.on:
        gone, _ = world.on.pop(two % len(world.on))
        stack.remove(gone)
    elif step == "provisional":
        operations = tuple(op for op in patch.operations if isinstance(op, WEIGHT_OPERATIONS))
        with stack.provisional() as writer:
            writer.add(operations)
            world.check(operations)
    elif step == "suspended":
        with stack.suspended():
            assert storages(world.model) == world.addresses
    elif step == "reset" and world.on:
        entries = stack.patches
        keep = [i for i in range(len(entries)) if (two >> i) & 1 == 0]
        stack.reset_to([entries[i] for i in keep])
        world.on[:] = [world.on[i] for i in keep]
