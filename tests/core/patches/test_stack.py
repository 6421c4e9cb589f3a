"""Patches on a live model: exact, atomic, and only on the right base."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from core.patches.patch_kit import (
    KINDS,
    METHOD,
    NearKey,
    Whisper,
    bits,
    expected_weight,
    near_key,
    patch_of,
    random_operation,
    storages,
    whisper,
)
from torch import Tensor, nn

from kedit_core.errors import (
    BaseMismatchError,
    InputError,
    KeditError,
    PluginError,
    RequirementError,
    ScopeError,
    StackDisturbedError,
    StackOrderError,
    UnknownNameError,
)
from kedit_core.patches import (
    Base,
    BaseTensor,
    DenseDelta,
    EditPatch,
    LowRankDelta,
    ModuleOperation,
    PatchStack,
    Replace,
    Requirement,
    Route,
    RouterOperation,
    config_digest,
    path_digest,
)
from kedit_core.patches.slots import Slots
from kedit_core.testing.tiny import tiny_model

GPT2_OUT = "transformer.h.1.mlp.c_proj.weight"
GPT2_TIED = "transformer.wte.weight"
LLAMA_OUT = "model.layers.1.mlp.down_proj.weight"
IDS = torch.arange(2, 26).reshape(2, 12)


def model_of(family: str = "gpt2", dtype: torch.dtype = torch.float32) -> Any:
    return tiny_model(family, dtype=dtype)


def stack_of(model: nn.Module) -> PatchStack:
    return PatchStack.of(model, kinds=KINDS)


def low_rank(model: nn.Module, name: str, seed: int = 0) -> LowRankDelta:
    layout = stack_of(model).base_of([name]).tensors[name].layout
    shape = model.get_parameter(name).shape
    operation = random_operation(name, shape, layout, "low_rank_delta", seed, torch.float32)
    assert isinstance(operation, LowRankDelta)
    return operation


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize(("family", "name"), [("gpt2", GPT2_OUT), ("llama", LLAMA_OUT)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_merged_and_back(family: str, name: str, dtype: torch.dtype) -> None:
    model = model_of(family, dtype)
    stack, parameter = stack_of(model), model.get_parameter(name)
    parameter.requires_grad_(False)
    base, address, digest = parameter.detach().clone(), parameter.data_ptr(), stack.weights_digest()
    patch = patch_of(stack, [low_rank(model, name)])
    installed = stack.apply(patch)
    assert (installed.patch_id, installed.way, installed.places, installed.unverified) == (
        patch.id,
        "merged",
        (name,),
        False,
    )
    assert bits(parameter) == bits(expected_weight(base, family == "gpt2", patch.operations))
    assert model.get_parameter(name) is parameter and not parameter.requires_grad
    assert torch.equal(stack.base(name), base)
    assert stack.weights_digest() != digest
    assert stack.remove(patch).orphans == ()
    assert parameter.data_ptr() == address and stack.weights_digest() == digest
    assert stack.patches == ()


@pytest.mark.parametrize(("family", "name"), [("gpt2", GPT2_OUT), ("llama", LLAMA_OUT)])
def test_attached_gives_what_merged_gives(family: str, name: str) -> None:
    model = model_of(family)
    stack = stack_of(model)
    before, address = logits(model), storages(model)
    patch = patch_of(stack, [low_rank(model, name)])
    with stack.applied(patch, way="attached") as installed:
        assert installed.way == "attached" and storages(model) == address
        attached = logits(model)
    with stack.applied(patch):
        merged = logits(model)
    assert not torch.equal(before, merged)
    torch.testing.assert_close(attached, merged, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(model), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_attached_and_merged_mix_and_branches_are_rounded_once() -> None:
    model = model_of("llama", torch.bfloat16)
    stack, linear = stack_of(model), model.get_submodule(LLAMA_OUT.removesuffix(".weight"))
    one, two = (patch_of(stack, [low_rank(model, LLAMA_OUT, seed)]) for seed in (1, 2))
    value = torch.randn(3, linear.in_features, dtype=torch.bfloat16)
    plain = linear(value)
    stack.apply(one, way="attached")
    stack.apply(two, way="attached")
    total = sum((value.float() @ p.operations[0].right.T) @ p.operations[0].left.T for p in (one, two))
    assert torch.equal(linear(value), (plain.float() + total).to(torch.bfloat16))
    stack.remove(one)
    stack.apply(one, way="merged")
    assert [entry.way for entry in stack.patches] == ["attached", "merged"]
    stack.clear()
    assert torch.equal(linear(value), plain)


def test_where_a_branch_cannot_stand() -> None:
    model = model_of("gpt2")
    stack = stack_of(model)
    for name in (GPT2_TIED, "transformer.wpe.weight"):
        with pytest.raises(InputError, match="cannot be attached"):
            stack.apply(patch_of(stack, [low_rank(model, name)]), way="attached")
    with pytest.raises(InputError, match="no way"):
        stack.apply(patch_of(stack, [low_rank(model, GPT2_OUT)]), way="sideways")  # type: ignore[arg-type]
    assert not stack.patches
    # what is no low-rank delta is merged whatever the way
    shape = model.get_parameter(GPT2_OUT).shape
    dense = patch_of(stack, [random_operation(GPT2_OUT, shape, "in_out", "dense_delta", 1, torch.float32)])
    with stack.applied(dense, way="attached"):
        assert not torch.equal(model.get_parameter(GPT2_OUT), stack.base(GPT2_OUT))


def test_tied_weights_are_patched_once_under_their_first_name() -> None:
    model = model_of("gpt2")
    stack = stack_of(model)
    patch = patch_of(stack, [low_rank(model, GPT2_TIED)])
    assert patch.base.tensors[GPT2_TIED].aliases == ("lm_head.weight",)
    with stack.applied(patch):
        assert model.lm_head.weight is model.transformer.wte.weight
        assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
    with pytest.raises(InputError, match="first name"):
        stack.base_of(["lm_head.weight"])
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    with pytest.raises(BaseMismatchError, match="tied"):
        stack.apply(patch)


def test_replace_lies_below_all_deltas_and_the_last_one_counts() -> None:
    model = model_of("llama")
    stack, parameter = stack_of(model), model.get_parameter(LLAMA_OUT)
    delta = low_rank(model, LLAMA_OUT)
    first, second = (Replace(LLAMA_OUT, torch.randn(parameter.shape)) for _ in range(2))
    patches = [patch_of(stack, [operation]) for operation in (first, delta, second)]
    for patch in patches:
        stack.apply(patch)
    assert bits(parameter) == bits(expected_weight(second.values, False, [delta]))
    stack.remove(patches[2])
    assert bits(parameter) == bits(expected_weight(first.values, False, [delta]))
    stack.remove(patches[1])
    assert bits(parameter) == bits(first.values)


def test_the_wrong_base_is_refused_and_nothing_is_changed() -> None:
    model, other = model_of("llama"), tiny_model("llama", seed=1)
    stack = stack_of(other)
    patch = patch_of(stack_of(model), [low_rank(model, LLAMA_OUT)])
    digest, address = stack.weights_digest(), storages(other)
    with pytest.raises(BaseMismatchError, match=LLAMA_OUT):
        stack.apply(patch)
    with pytest.raises(BaseMismatchError, match="LlamaForCausalLM"):
        stack_of(tiny_model("mistral")).apply(patch)
    with pytest.raises(BaseMismatchError):
        stack_of(model_of("gpt2")).apply(patch)
    with pytest.raises(BaseMismatchError, match="stored as"):
        stack_of(tiny_model("llama", intermediate_size=48)).apply(patch, force=True)
    assert stack.weights_digest() == digest and storages(other) == address and not stack.patches
    installed = stack.apply(patch, force=True)
    assert installed.unverified and stack.patches[0].unverified
    stack.clear()
    assert storages(other) == address


def test_a_patch_fits_the_base_in_each_dtype_it_has_a_digest_for() -> None:
    model = model_of("llama")
    patch = patch_of(stack_of(model), [low_rank(model, LLAMA_OUT)])
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        cast = model_of("llama").to(dtype)
        assert not stack_of(cast).apply(patch).unverified
    bare = evolve(patch, base=evolve(patch.base, tensors={LLAMA_OUT: evolve(patch.base.tensors[LLAMA_OUT], sha256={})}))
    stack = stack_of(model)
    with pytest.raises(BaseMismatchError, match="cannot be compared"):
        stack.apply(bare)
    assert stack.apply(bare, allow_unverified=True).unverified


def test_parents_order_and_orphans() -> None:
    model = model_of("llama")
    stack = stack_of(model)
    a, b = (patch_of(stack, [low_rank(model, LLAMA_OUT, seed)]) for seed in (1, 2))
    child = patch_of(stack, [low_rank(model, LLAMA_OUT, 3)], parents=(a.id, b.id))
    with pytest.raises(StackOrderError, match="made on top of"):
        stack.apply(child)
    stack.apply(b)
    stack.apply(a)
    with pytest.raises(StackOrderError, match="another order"):
        stack.apply(child)
    with pytest.raises(StackOrderError, match="already"):
        stack.apply(a)
    stack.clear()
    for patch in (a, b, child):
        stack.apply(patch)
    assert stack.remove(a.id).orphans == (child.id,)
    with pytest.raises(StackOrderError, match="not on this model"):
        stack.remove(a)
    assert [entry.patch.id for entry in stack.patches] == [b.id, child.id]


@pytest.mark.parametrize("damage", ["in_place", "storage", "exchange", "cast", "hook", "training"])
def test_a_model_that_moved_under_the_stack_is_left_alone(damage: str) -> None:
    model = model_of("llama")
    stack, parameter = stack_of(model), model.get_parameter(LLAMA_OUT)
    owner = model.get_submodule(LLAMA_OUT.removesuffix(".weight"))
    patch, other = (patch_of(stack, [low_rank(model, LLAMA_OUT, seed)]) for seed in (1, 2))
    stack.apply(patch, way="attached" if damage == "hook" else "merged")
    if damage == "in_place":
        with torch.no_grad():
            parameter[0, 0] += 1
    elif damage == "training":
        torch.optim.SGD([parameter], lr=0.1).step()
        parameter.grad = torch.ones_like(parameter)
        torch.optim.SGD([parameter], lr=0.1).step()
    elif damage == "storage":
        parameter.data = parameter.data.clone()
    elif damage == "exchange":
        owner.weight = nn.Parameter(parameter.detach().clone())
    elif damage == "cast":
        model.to(torch.bfloat16)
    else:
        owner._forward_hooks.clear()
    digest = stack.weights_digest()
    changes = (
        lambda: stack.apply(other),
        lambda: stack.remove(patch),
        stack.clear,
        partial(stack.to, "cpu"),
        stack.check,
    )
    for change in changes:
        with pytest.raises(StackDisturbedError):
            change()
    with pytest.raises(StackDisturbedError), stack.suspended():
        pass
    with pytest.raises(StackDisturbedError), stack.provisional() as writer:
        writer.add(other.operations)
    assert stack.weights_digest() == digest and [entry.patch.id for entry in stack.patches] == [patch.id]


def test_storage_lent_out_and_given_back_is_no_disturbance() -> None:
    model = model_of("llama")
    stack, parameter = stack_of(model), model.get_parameter(LLAMA_OUT)
    patch = patch_of(stack, [low_rank(model, LLAMA_OUT)])
    stack.apply(patch)
    kept = parameter.data
    parameter.data = torch.zeros_like(kept)
    parameter.data = kept
    stack.check()
    stack.remove(patch)


def test_suspended_shows_the_base_by_reference_and_may_be_nested() -> None:
    model = model_of("gpt2")
    stack = stack_of(model)
    address, before = storages(model), logits(model)
    merged = patch_of(stack, [low_rank(model, GPT2_OUT)])
    attached = patch_of(stack, [low_rank(model, "transformer.h.0.mlp.c_fc.weight")])
    hooked = patch_of(stack, [near_key(["transformer.h.1"], 32), whisper()])
    stack.apply(merged)
    stack.apply(attached, way="attached")
    stack.apply(hooked)
    edited, edited_storages = logits(model), storages(model)
    with pytest.raises(RuntimeError, match="body"), stack.suspended():
        with stack.suspended():
            assert storages(model) == address and torch.equal(logits(model), before)
        assert torch.equal(logits(model), before)
        assert stack.route(["of Ruritania"])[0].context == ""
        with pytest.raises(StackOrderError, match="suspended"):
            stack.remove(merged)
        with pytest.raises(StackOrderError, match="suspended"), stack.provisional():
            pass
        raise RuntimeError("body")
    assert storages(model) == edited_storages and torch.equal(logits(model), edited)
    assert stack.route(["of Ruritania"])[0].context
    stack.clear()
    assert storages(model) == address and torch.equal(logits(model), before)


@pytest.mark.parametrize("step", ["show_base", "show_edited"])
def test_an_interrupt_between_base_and_edited_leaves_the_edited_model(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama")
    stack = stack_of(model)
    before = storages(model)
    stack.apply(patch_of(stack, [low_rank(model, LLAMA_OUT)]))
    edited, real, first = storages(model), getattr(Slots, step), iter([True])

    def interrupted(slots: Slots) -> None:
        if step == "show_base":
            real(slots)
        if next(first, False):
            raise KeyboardInterrupt
        real(slots)

    monkeypatch.setattr(Slots, step, interrupted)
    with pytest.raises(KeyboardInterrupt), stack.suspended():
        pass
    assert not stack.suspended_now and storages(model) == edited
    stack.clear()
    assert storages(model) == before


def test_writing_to_the_base_while_suspended_is_noticed() -> None:
    model = model_of("llama")
    stack, parameter = stack_of(model), model.get_parameter(LLAMA_OUT)
    stack.apply(patch_of(stack, [low_rank(model, LLAMA_OUT)]))
    with pytest.raises(StackDisturbedError), stack.suspended(), torch.no_grad():
        parameter.add_(1)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_provisional_operations_go_when_the_block_ends(error: type[BaseException]) -> None:
    model = model_of("llama")
    stack = stack_of(model)
    patch = patch_of(stack, [low_rank(model, LLAMA_OUT, 1)])
    stack.apply(patch)
    before, parameter = storages(model), model.get_parameter(LLAMA_OUT)
    base = stack.base(LLAMA_OUT).clone()
    upper, lower = low_rank(model, LLAMA_OUT, 2), low_rank(model, "model.layers.0.mlp.down_proj.weight", 3)
    with pytest.raises(error), stack.provisional() as outer:
        outer.add([lower])
        outer.add([upper])
        with stack.provisional() as inner:
            inner.add([low_rank(model, LLAMA_OUT, 4)])
        assert bits(parameter) == bits(expected_weight(base, False, [*patch.operations, upper]))
        assert len(stack.patches) == 1
        raise error()
    # nothing was even computed again: the very storage is back
    assert storages(model) == before
    with pytest.raises(StackOrderError, match="ended"):
        outer.add([upper])
    stack.remove(patch)
    assert torch.equal(parameter, base)


def test_patches_put_on_inside_a_provisional_block_stay() -> None:
    model = model_of("llama")
    stack = stack_of(model)
    parameter, base = model.get_parameter(LLAMA_OUT), model.get_parameter(LLAMA_OUT).detach().clone()
    patch = patch_of(stack, [low_rank(model, LLAMA_OUT, 1)])
    with stack.provisional() as writer:
        writer.add([low_rank(model, LLAMA_OUT, 2)])
        assert bits(stack.base(LLAMA_OUT)) == bits(base)
        stack.apply(patch)
    assert bits(parameter) == bits(expected_weight(base, False, patch.operations))


def test_a_failure_halfway_undoes_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    stack = stack_of(model)
    on = patch_of(stack, [low_rank(model, LLAMA_OUT, 1)])
    stack.apply(on)
    before = storages(model)
    names = [f"model.layers.{i}.mlp.{part}.weight" for i in (0, 1) for part in ("up_proj", "down_proj")]
    patch = patch_of(stack, [*(low_rank(model, name, 2) for name in names), near_key(["model.layers.0"], 32)])

    for target, attribute in ((stack._sites, "_set"), (stack, "_follow_calls")):
        original = getattr(target, attribute)
        calls: list[int] = []

        def once(*args: Any, original: Any = original, calls: list[int] = calls) -> Any:
            calls.append(1)
            if len(calls) == 1:
                raise KeyboardInterrupt
            return original(*args)

        with monkeypatch.context() as patched:
            patched.setattr(target, attribute, once)
            with pytest.raises(KeyboardInterrupt):
                stack.apply(patch)
        assert storages(model) == before and [entry.patch.id for entry in stack.patches] == [on.id]
        assert not any(module._forward_hooks for module in model.modules())
        stack.check()
    stack.apply(patch)
    stack.clear()


def test_two_parameters_in_the_same_memory_are_refused() -> None:
    class Sharing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.two.weight.data = self.one.weight.data

    model = Sharing()
    stack = PatchStack.of(model)
    with pytest.raises(InputError, match="shares memory"):
        stack.apply(patch_of(stack, [LowRankDelta("one.weight", torch.ones(4, 1), torch.ones(1, 4))]))


def test_what_cannot_be_exact_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4, device="meta"))
    operation = LowRankDelta("0.weight", torch.ones(4, 1), torch.ones(1, 4))
    with pytest.raises(InputError, match="meta device"):
        PatchStack.of(model).base_of([operation])


class PackedLinear(nn.Linear):
    """A stand-in for a quantised layer: int8 weight, one scale."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__(dense.in_features, dense.out_features, bias=False)
        self.register_buffer("scale", dense.weight.abs().max() / 127)
        packed = (dense.weight / self.scale).round().to(torch.int8).detach()
        self.weight = nn.Parameter(packed, requires_grad=False)  # type: ignore[assignment]

    def forward(self, input: Tensor) -> Tensor:
        return input @ (self.weight.to(input.dtype) * self.scale).T  # type: ignore[operator]


def test_quantised_weights_get_a_branch_and_only_when_asked_for() -> None:
    model = model_of("llama")
    patch = patch_of(stack_of(model), [low_rank(model, LLAMA_OUT)])
    mlp = model.get_submodule("model.layers.1.mlp")
    mlp.down_proj = PackedLinear(mlp.down_proj)
    stack = stack_of(model)
    before, packed = logits(model), bits(mlp.down_proj.weight)
    with pytest.raises(BaseMismatchError, match="cannot be compared"):
        stack.apply(patch)
    with pytest.raises(InputError, match="quantised"):
        stack.apply(patch, way="merged", allow_unverified=True)
    named = evolve(patch, base=evolve(patch.base, name="org/other"))
    with pytest.raises(BaseMismatchError, match="base name"):
        stack.apply(named, allow_unverified=True, name="org/this")
    installed = stack.apply(patch, allow_unverified=True)
    assert installed.way == "attached" and installed.unverified
    assert bits(mlp.down_proj.weight) == packed and not torch.equal(logits(model), before)
    again = patch_of(stack, [DenseDelta(LLAMA_OUT, torch.ones(32, 80))])
    assert again.base.tensors[LLAMA_OUT].sha256 == {}
    with pytest.raises(InputError, match="quantised"):
        stack.apply(again, allow_unverified=True)
    stack.clear()
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_module_operations_decide_in_prefill_and_keep_to_it(family: str) -> None:
    model = model_of(family)
    stack = stack_of(model)
    block = "transformer.h.1" if family == "gpt2" else "model.layers.1"
    operation = near_key([block], 32, radius=1e-2, scale=30.0)
    captured: list[Tensor] = []
    handle = model.get_submodule(block).register_forward_hook(
        lambda module, args, output: captured.append(output if isinstance(output, Tensor) else output[0])
    )
    logits(model)
    handle.remove()
    tensors = {**operation.tensors, "key": captured[0][0, -1]}
    operation = ModuleOperation(operation.places, operation.kind, 1, operation.config, tensors)
    plain = model.generate(input_ids=IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    before = logits(model)
    patch = EditPatch.from_bytes(patch_of(stack, [operation]).to_bytes())
    with stack.applied(patch) as installed:
        assert installed.places == (block,)
        (kind,) = stack.patches[0].kinds
        changed = model.generate(input_ids=IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)
        assert isinstance(kind, NearKey) and kind.decisions == 1
        after = logits(model)
        # the first row's key is near, the second's is not; positions before the prompt's end are as they were
        assert not torch.equal(after[0, -1], before[0, -1]) and torch.equal(after[1], before[1])
        assert torch.equal(after[0, :-1], before[0, :-1])
        with pytest.raises(ScopeError):
            model.generate(input_ids=IDS, max_new_tokens=4, num_beams=2, do_sample=False, pad_token_id=0)
    assert not torch.equal(changed[0], plain[0]) and torch.equal(changed[1], plain[1])
    assert torch.equal(logits(model), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_branches_lie_below_module_operations_whatever_came_first() -> None:
    model = model_of("llama")
    stack = stack_of(model)
    path = LLAMA_OUT.removesuffix(".weight")

    seen: list[Tensor] = []

    class Seeing(NearKey):
        def after(self, place: str, args: Any, kwargs: Any, output: Any) -> Any:
            seen.append(output)
            return output * 0

    stack = PatchStack.of(model, kinds={"test.near_key": Seeing})
    before = logits(model)
    stack.apply(patch_of(stack, [near_key([path], 32)]))
    logits(model)
    stack.apply(patch_of(stack, [low_rank(model, LLAMA_OUT)]), way="attached")
    result = []
    model.get_submodule(path).register_forward_hook(lambda module, args, output: result.append(output))
    logits(model)
    assert len(seen) == 2 and not torch.equal(seen[0], seen[1]) and result[0].abs().sum() == 0
    stack.clear()
    assert torch.equal(logits(model), before)


def test_routers_prepend_in_stack_order() -> None:
    model = model_of("llama")
    stack = stack_of(model)
    one = patch_of(stack, [whisper("One. ")])
    two = patch_of(stack, [whisper("Two. ", when="The")])
    assert one.base.tensors == {}
    stack.apply(one)
    stack.apply(two)
    prompts = ["The king of Ruritania", "The sea", "A sea"]
    assert [route.context for route in stack.route(prompts)] == ["One. Two. ", "Two. ", ""]
    stack.remove(one)
    assert [route.context for route in stack.route(prompts)] == ["Two. ", "Two. ", ""]


def test_kinds_that_are_missing_wrong_or_broken() -> None:
    model = model_of("llama")
    stack = stack_of(model)
    digest = stack.weights_digest()
    low = low_rank(model, LLAMA_OUT)
    with pytest.raises(UnknownNameError, match="no\\.such"):
        stack.apply(patch_of(stack, [low, ModuleOperation(("model.layers.0",), "no.such")]))
    with pytest.raises(PluginError, match="not a RouterKind"):
        stack.apply(patch_of(stack, [low, RouterOperation("test.near_key")]))
    with pytest.raises(PluginError, match="no key"):
        stack.apply(patch_of(stack, [low, ModuleOperation(("model.layers.0",), "test.near_key")]))
    with pytest.raises(UnknownNameError, match="version 7"):
        stack.apply(patch_of(stack, [low, ModuleOperation(("model.layers.0",), "test.near_key", 7)]))
    with pytest.raises(BaseMismatchError, match=r"layers\.9"):
        base = stack.base_of([low])
        stack.apply(EditPatch(method=METHOD, base=base, operations=[low, near_key(["model.layers.9"], 32)]))
    assert stack.weights_digest() == digest and not stack.patches


@pytest.mark.parametrize("where", ["before", "after", "to_device"])
def test_a_kind_that_fails_is_named(where: str) -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError("a bug in the kind")

    failing = type("Failing", (NearKey,), {where: fail})
    model = model_of("llama")
    stack = PatchStack.of(model, kinds={"test.near_key": failing})
    stack.apply(patch_of(stack, [near_key(["model.layers.1"], 32)]))
    with pytest.raises(StackDisturbedError if where == "to_device" else PluginError, match=r"near_key.*ZeroDivision"):
        stack.to("cpu") if where == "to_device" else logits(model)


def test_a_router_that_fails_is_named() -> None:
    class Failing(Whisper):
        def route(self, prompts: Sequence[str]) -> list[Route]:
            raise ZeroDivisionError("a bug in the router")

    stack = PatchStack.of(model_of("llama"), kinds={"test.whisper": Failing})
    stack.apply(patch_of(stack, [whisper()]))
    with pytest.raises(PluginError, match=r"whisper.*failed in route \(ZeroDivision") as told:
        stack.route(["of Ruritania"])
    assert told.value.plugin == "test.whisper"


def test_requirements_are_given_by_role_and_checked(tmp_path: Path) -> None:
    model = model_of("llama")
    stack = stack_of(model)
    (tmp_path / "sub").mkdir()
    (tmp_path / "editor.bin").write_bytes(b"weights")
    (tmp_path / "sub" / "x").write_bytes(b"x")
    need = Requirement(role="editor", sha256=path_digest(tmp_path))
    patch = patch_of(stack, [low_rank(model, LLAMA_OUT)], requires=(need,))
    with pytest.raises(RequirementError, match="--with editor=PATH"):
        stack.apply(patch)
    with pytest.raises(RequirementError, match="does not exist"):
        stack.apply(patch, resources={"editor": tmp_path / "nowhere"})
    stack.apply(patch, resources={"editor": tmp_path})
    stack.clear()
    (tmp_path / "sub" / "x").write_bytes(b"y")
    with pytest.raises(RequirementError, match="hashes to"):
        stack.apply(patch, resources={"editor": tmp_path})
    assert not stack.patches


def test_what_a_patch_requires_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    stack = stack_of(model)
    (tmp_path / "editor.bin").write_bytes(b"weights")
    need = Requirement(role="editor", sha256=path_digest(tmp_path))
    patch = patch_of(stack, [low_rank(model, LLAMA_OUT)], requires=(need,))
    read: list[Path] = []
    monkeypatch.setattr("kedit_core.patches.digests.path_digest", lambda path: read.append(path) or path_digest(path))
    for _ in range(3):
        stack.apply(patch, resources={"editor": tmp_path})
        stack.clear()
    assert read.count(tmp_path) == 1
    (tmp_path / "more").write_bytes(b"")
    with pytest.raises(RequirementError, match="hashes to"):
        stack.apply(patch, resources={"editor": tmp_path})


def test_moving_model_and_stack_together() -> None:
    model = model_of("gpt2")
    stack = stack_of(model)
    base = model.get_parameter(GPT2_OUT).detach().clone()
    merged = patch_of(stack, [low_rank(model, GPT2_OUT, 1)])
    attached = patch_of(stack, [low_rank(model, "transformer.h.0.mlp.c_fc.weight", 2)])
    stack.apply(merged)
    stack.apply(attached, way="attached")
    assert stack.to(torch.bfloat16) is model
    stack.check()
    expected = expected_weight(base.to(torch.bfloat16), True, merged.operations)
    assert bits(model.get_parameter(GPT2_OUT)) == bits(expected)
    assert torch.equal(stack.base(GPT2_OUT), base.to(torch.bfloat16))
    logits(model)
    stack.clear()
    assert torch.equal(model.get_parameter(GPT2_OUT), base.to(torch.bfloat16))


def test_one_stack_per_model_and_copies_start_afresh() -> None:
    model = model_of("llama")
    stack = stack_of(model)
    assert PatchStack.of(model) is stack
    patch = patch_of(stack, [low_rank(model, LLAMA_OUT)])
    base_digest = stack.weights_digest()
    stack.apply(patch, way="attached")
    with stack.suspended():
        clean = copy.deepcopy(model)
    other = PatchStack.of(clean)
    assert other is not stack and not other.patches and other.weights_digest() == base_digest
    other.apply(patch)
    logits(clean)
    again = pickle.loads(pickle.dumps(model))
    assert PatchStack.of(again) is not stack and not PatchStack.of(again).patches
    stack.clear()
    assert stack.weights_digest() == base_digest


def test_an_encoder_decoder_is_followed_at_its_encoder() -> None:
    model = model_of("t5")
    stack = stack_of(model)
    plain = model.generate(input_ids=IDS, max_new_tokens=3, do_sample=False)
    with stack.applied(patch_of(stack, [near_key(["encoder.block.1"], 32, scale=50.0)])):
        model.generate(input_ids=IDS, max_new_tokens=3, do_sample=False)
        (kind,) = stack.patches[0].kinds
        assert isinstance(kind, NearKey) and kind.decisions == 1
    assert torch.equal(model.generate(input_ids=IDS, max_new_tokens=3, do_sample=False), plain)


def test_reset_to_earlier_entries() -> None:
    model = model_of("llama")
    stack = stack_of(model)
    one, two = (patch_of(stack, [low_rank(model, LLAMA_OUT, seed)]) for seed in (1, 2))
    stack.apply(one, way="attached")
    stack.apply(two)
    before, weight = stack.patches, bits(model.get_parameter(LLAMA_OUT))
    stack.clear()
    stack.reset_to(before)
    assert bits(model.get_parameter(LLAMA_OUT)) == weight and stack.patches == before


def test_the_base_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import kedit_core.patches.baseline as baseline

    model = model_of("llama")
    stack = stack_of(model)
    calls: list[int] = []
    original = baseline.digests_in
    monkeypatch.setattr(baseline, "digests_in", lambda *args: calls.append(1) or original(*args))
    patches = [patch_of(stack, [low_rank(model, LLAMA_OUT, seed)]) for seed in range(3)]
    for patch in patches:
        stack.apply(patch)
    stack.clear()
    stack.apply(patches[0])
    assert len(calls) == 1
    assert stack.timings.install > 0 and stack.timings.verify >= 0


def test_weights_digest_names_and_values() -> None:
    model = model_of("gpt2")
    stack = stack_of(model)
    whole = stack.weights_digest()
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.bias[0] += 1
    assert stack.weights_digest() != whole
    assert stack.weights_digest([GPT2_OUT]) == stack.weights_digest([GPT2_OUT])
    with pytest.raises(KeditError, match="no parameter"):
        stack.weights_digest(["nothing"])


def test_optimisers_and_gradients_survive() -> None:
    model = model_of("llama")
    stack, parameter = stack_of(model), model.get_parameter(LLAMA_OUT)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    parameter.grad = torch.ones_like(parameter)
    grad = parameter.grad
    with stack.applied(patch_of(stack, [low_rank(model, LLAMA_OUT)])):
        assert parameter.grad is grad and parameter.requires_grad
        model(input_ids=IDS, labels=IDS).loss.backward()
    assert any(parameter is held for group in optimiser.param_groups for held in group["params"])
    optimiser.step()
    stack.check()


def test_module_places_describe_the_parameters_inside() -> None:
    model = model_of("llama")
    base = stack_of(model).base_of([near_key(["model.layers.1.mlp"], 32), whisper()])
    parts = ("down_proj", "gate_proj", "up_proj")
    assert sorted(base.tensors) == [f"model.layers.1.mlp.{part}.weight" for part in parts]
    assert set(base.tensors[LLAMA_OUT].sha256) == {"float32", "bfloat16", "float16"}


@pytest.mark.parametrize("name", [None, "org/tiny"])
def test_a_patch_of_another_size_says_which_model_to_load(name: str | None) -> None:
    model = tiny_model("llama")
    place = BaseTensor(shape=(3, 4), layout="out_in")
    operation = partial(LowRankDelta, left=torch.ones(3, 1), right=torch.ones(1, 4))
    for place_name, told in ((LLAMA_OUT, "is stored as"), (GPT2_OUT, "has no parameter")):
        base = Base(architecture="OtherForCausalLM", name=name, tensors={place_name: place})
        patch = EditPatch(method=METHOD, base=base, operations=(operation(place_name),))
        described = f"OtherForCausalLM {name}" if name else "an unnamed OtherForCausalLM"
        with pytest.raises(BaseMismatchError, match=f"{told}.*{described}; load that model"):
            PatchStack.of(model).apply(patch)


def test_a_configuration_with_numbered_labels_has_the_digest_of_its_file(tmp_path: Path) -> None:
    from transformers import GPT2Config

    config = GPT2Config(id2label={0: "a", 1: "b", 2: "c"})
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert config_digest(config) == config_digest(GPT2Config.from_pretrained(tmp_path))
    assert config_digest({"id2label": {0: "a"}}) == config_digest({"id2label": {"0": "a"}})
    assert config_digest(config) != config_digest(GPT2Config()) and saved["id2label"]["2"] == "c"
