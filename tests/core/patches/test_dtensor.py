"""A model that two processes hold between them (FSDP2, tensor parallelism): the bits of a model in one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from core.patches.patch_kit import bits, expected_weight, patch_of, random_operation
from gloo_tools import run_ranks
from torch import Tensor

from kedit_core.errors import KeditError
from kedit_core.models.storage import Sharded
from kedit_core.patches import EditPatch, PatchStack
from kedit_core.testing.tiny import tiny_model

DOWN = "model.layers.1.mlp.down_proj.weight"
GPT2_DOWN = "transformer.h.1.mlp.c_proj.weight"
NORM = "model.norm.weight"
EMBEDDINGS = "transformer.wte.weight"
IDS = torch.arange(2, 26).reshape(2, 12)
KINDS = ("low_rank_delta", "dense_delta", "sparse_delta", "replace")

CODE = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import torch.distributed as dist
dist.init_process_group("gloo")
from core.patches import test_dtensor
folder = Path(sys.argv[1])
told = test_dtensor.together(dist.get_rank(), folder)
(folder / f"told-{dist.get_rank()}.json").write_text(json.dumps(told))
dist.destroy_process_group()
"""


def whole(family: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    return tiny_model(family, dtype=dtype).eval()


def fsdp(family: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, mesh = whole(family, dtype), init_device_mesh("cpu", (2,))
    for block in model.model.layers if family == "llama" else model.transformer.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def parallel() -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model, mesh = whole(), init_device_mesh("cpu", (2,))
    plan = {"gate_proj": ColwiseParallel(), "up_proj": ColwiseParallel(), "down_proj": RowwiseParallel()}
    for layer in model.model.layers:
        parallelize_module(layer.mlp, mesh, plan)
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def operations(model: Any, name: str, kind: str, seed: int = 1) -> list[Any]:
    layout = PatchStack.of(model).base_of([name]).tensors[name].layout
    return [random_operation(name, model.get_parameter(name).shape, layout, kind, seed, torch.float32)]


def part(parameter: Any, value: Tensor) -> Tensor:
    """What this process must hold, cut by hand."""
    (placement,) = parameter.placements
    rank, size = parameter.device_mesh.get_local_rank(), parameter.device_mesh.size()
    pieces = torch.chunk(value, size, dim=placement.dim)
    return pieces[rank] if rank < len(pieces) else value.narrow(placement.dim, 0, 0)


def exact(make: Callable[[], Any], alone: Any, name: str, kind: str, close: bool = False) -> dict[str, Any]:
    """One patch on a model of two processes and on one in a single process, and off again."""
    model = make()
    stack, lone = PatchStack.of(model), PatchStack.of(alone)
    base, before = alone.get_parameter(name).detach().clone(), logits(alone)
    first, second = (patch_of(lone, operations(alone, name, kind, seed)) for seed in (1, 2))
    parameter = model.get_parameter(name)
    local = bits(parameter.to_local())
    address = parameter.to_local().data_ptr()
    told: dict[str, Any] = {"digest": stack.weights_digest() == lone.weights_digest()}
    told["same id"] = patch_of(stack, first.operations).id == first.id
    logits(model)
    for patch in (first, second):
        told.setdefault("unverified", []).append(stack.apply(patch).unverified)
        lone.apply(patch)
    transposed = stack.base_of([name]).tensors[name].layout == "in_out"
    wanted = expected_weight(base, transposed, [*first.operations, *second.operations])
    told["bits"] = bits(parameter.to_local()) == bits(part(parameter, wanted))
    told["changed"] = bits(parameter.to_local()) != local or parameter.to_local().numel() == 0
    told["edited digest"] = stack.weights_digest() == lone.weights_digest()
    told["edited logits"] = same(logits(model), logits(alone), close)
    with stack.suspended():
        told["suspended"] = same(logits(model), before, close) and bits(parameter.to_local()) == local
        told["base"] = torch.equal(stack.base(name), base)
    told["edited again"] = same(logits(model), logits(alone), close)
    stack.remove(first)
    lone.remove(first)
    told["one left"] = stack.weights_digest() == lone.weights_digest()
    stack.clear()
    lone.clear()
    told["restored"] = bits(parameter.to_local()) == local and parameter.to_local().data_ptr() == address
    told["restored logits"] = same(logits(model), before, close)
    stack.check()
    return told


def same(one: Tensor, other: Tensor, close: bool) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-5) if close else torch.equal(one, other)


def attached() -> dict[str, Any]:
    model, alone = fsdp(), whole()
    stack, lone = PatchStack.of(model), PatchStack.of(alone)
    patch = patch_of(lone, operations(alone, DOWN, "low_rank_delta"))
    before = logits(model)
    with stack.applied(patch, way="attached"), lone.applied(patch, way="attached"):
        beside = bool(torch.equal(logits(model), logits(alone)) and not torch.equal(logits(model), before))
    return {"beside": beside, "gone": torch.equal(logits(model), before)}


def refused(rank: int) -> dict[str, Any]:
    """What goes wrong on one of them only: both say the same, and neither waits for the other."""
    model, alone = fsdp(), whole()
    stack, lone = PatchStack.of(model), PatchStack.of(alone)
    patch = patch_of(lone, operations(alone, DOWN, "low_rank_delta"))
    other = patch_of(lone, operations(alone, DOWN, "low_rank_delta", 5))
    told: dict[str, Any] = {}

    def trial(name: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except KeditError as error:
            told[name] = f"{type(error).__name__}: {error}"
        else:
            told[name] = "nothing was raised"

    digest = stack.weights_digest()
    trial("other patch", lambda: stack.apply((patch, other)[rank]))
    trial("other way", lambda: stack.apply(patch, way=("merged", "attached")[rank]))
    trial("forced by one", lambda: stack.apply(patch, force=rank == 1))
    trial("other place", lambda: stack.base_of([(DOWN, NORM)[rank]]))
    told["untouched"] = stack.weights_digest() == digest
    with stack.applied(patch):
        trial("only one of them has it", lambda: stack.remove((patch, other)[rank]))
        with stack.provisional() as writer:
            trial("other operations", lambda: writer.add(patch.operations, way=("merged", "attached")[rank]))
    told["nothing on"] = stack.patches == () and stack.weights_digest() == digest
    trial("not on", lambda: stack.remove(patch))
    parameter = model.get_parameter(DOWN)
    with torch.no_grad():
        if rank == 1:
            parameter.to_local().add_(1)
    trial("other base", lambda: stack.apply(patch))
    told["one writes, nothing kept"] = stack.patches == ()
    with torch.no_grad():
        if rank == 1:
            parameter.to_local().sub_(1)
    stack.apply(patch, force=True)
    with torch.no_grad():
        if rank == 1:
            parameter.to_local().mul_(3)
    trial("disturbed", stack.check)
    trial("disturbed on leaving", lambda: stack.remove(patch))
    # through the DTensor, as optimisers write
    model = fsdp()
    stack = PatchStack.of(model)
    stack.apply(patch)
    with torch.no_grad():
        model.get_parameter(DOWN).mul_(3)
    trial("trained", stack.clear)
    model = fsdp()
    PatchStack.of(model).base_of([DOWN])  # keeps the digest
    with torch.no_grad():
        model.get_parameter(DOWN).mul_(3)
    trial("trained base", lambda: PatchStack.of(model).apply(patch))
    trial("moved", lambda: PatchStack.of(parallel()).to("cpu"))
    trial("branch in a parallel layer", lambda: PatchStack.of(parallel()).apply(patch, way="attached"))
    return told


def editor(model: Any) -> dict[str, Any]:
    """An Editor on it: answers as on the whole model, and no edit is computed."""
    from kedit_core import Editor, EditRequest
    from kedit_core.testing.tiny import tiny

    alone, tokenizer = tiny("llama")
    request = EditRequest(prompt="The capital of Ruritania is", subject="Ruritania", target_new="Strelsau")
    found = []
    for each in (model, alone):
        one = Editor(each, tokenizer)
        patch = patch_of(PatchStack.of(alone), operations(alone, DOWN, "low_rank_delta"))
        before = one.generate(request.prompt, max_new_tokens=4)
        one.apply(patch)
        answers = [before, one.generate(request.prompt, max_new_tokens=4), str(one.evaluate([request]).summary())]
        one.restore()
        found.append([*answers, one.generate(request.prompt, max_new_tokens=4)])
    told: dict[str, Any] = {"answers": found[0] == found[1], "shown": found[0][:2]}
    try:
        Editor(model, tokenizer, method="rome", hparams={"layer": 1, "mom2_adjustment": False}).edit(request)
    except KeditError as error:
        told["edit"] = str(error)
    return told


def together(rank: int, folder: Path) -> dict[str, Any]:
    """What each of two processes does."""
    told: dict[str, Any] = {}
    for kind in KINDS:
        told[f"fsdp {kind}"] = exact(fsdp, whole(), DOWN, kind)
    told["fsdp in_out half"] = exact(
        lambda: fsdp("gpt2", torch.bfloat16), whole("gpt2", torch.bfloat16), GPT2_DOWN, "low_rank_delta"
    )
    told["fsdp uneven tied"] = exact(lambda: fsdp("gpt2"), whole("gpt2"), EMBEDDINGS, "dense_delta")
    told["fsdp vector"] = exact(fsdp, whole(), NORM, "dense_delta")
    for kind in ("low_rank_delta", "replace"):
        told[f"parallel {kind}"] = exact(parallel, whole(), DOWN, kind, close=True)
    told["attached"] = attached()
    told["refused"] = refused(rank)
    told["editor"] = editor(fsdp())
    return told


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found."""
    folder = tmp_path_factory.mktemp("pair")
    run_ranks(CODE, [folder])
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in (0, 1)]


CASES = [*(f"fsdp {kind}" for kind in KINDS), "fsdp in_out half", "fsdp uneven tied", "fsdp vector"]


@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES, "parallel low_rank_delta", "parallel replace"])
def test_parts_have_the_bits_of_the_whole(told: list[dict[str, Any]], case: str) -> None:
    for each in told:
        assert each[case].pop("unverified") == [False, False]
        assert all(each[case].values()), each[case]


@pytest.mark.slow
def test_a_branch_beside_what_fsdp_gathers(told: list[dict[str, Any]]) -> None:
    assert [each["attached"] for each in told] == [{"beside": True, "gone": True}] * 2


@pytest.mark.slow
def test_what_one_refuses_all_refuse(told: list[dict[str, Any]]) -> None:
    first, second = (each["refused"] for each in told)
    assert first["untouched"] and second["untouched"]
    assert first["nothing on"] and second["nothing on"]
    assert first["one writes, nothing kept"] and second["one writes, nothing kept"]
    for fault, words in (
        ("not on", "StackOrderError"),
        ("other base", "BaseMismatchError"),
        ("trained", f"StackDisturbedError: '{DOWN}' was written to"),
        ("trained base", "BaseMismatchError"),
        ("disturbed", f"StackDisturbedError: '{DOWN}' was written to"),
        ("disturbed on leaving", "StackDisturbedError"),
        ("moved", "InputError: this model is spread"),
        ("branch in a parallel layer", "InputError: a branch cannot be attached"),
    ):
        assert first[fault] == second[fault] and first[fault].startswith(words), (first[fault], second[fault])
    for fault in (
        "other patch", "other way", "forced by one", "other place", "only one of them has it", "other operations",
    ):  # fmt: skip
        for each in (first, second):
            assert each[fault].startswith("StackOrderError: this process is about to") and "another one" in each[fault]


@pytest.mark.slow
def test_an_editor_answers_and_computes_no_edit(told: list[dict[str, Any]]) -> None:
    for each in told:
        assert each["editor"]["answers"] and "several processes" in each["editor"]["edit"]


def test_a_model_in_one_process_agrees_with_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    from kedit_core.patches import ranks

    monkeypatch.setattr(ranks.Ranks, "_collected", lambda *_: pytest.fail("nobody is there to ask"))
    model = whole()
    stack = PatchStack.of(model)
    patch: EditPatch = patch_of(stack, operations(model, DOWN, "low_rank_delta"))
    with stack.applied(patch):
        stack.check()


def test_parts_that_are_not_plain_pieces_are_not_cut() -> None:
    """As FSDP2 and tensor parallelism on one weight make them, and as a product not yet summed up is."""
    from torch.distributed.tensor import Partial, Placement, Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    storage = Sharded.__new__(Sharded)

    def fault(*placements: Placement) -> str | None:
        storage.placements = placements
        return storage.delta_fault

    assert fault(Replicate(), Shard(1)) is None
    for odd in (_StridedShard(0, split_factor=2), Partial()):
        found = fault(odd, Shard(0))
        assert found is not None and type(odd).__name__ in found and "cannot cut" in found
