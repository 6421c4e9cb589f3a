"""Models whose weights accelerate keeps in memory or on disk: the bits of a model in memory, and no file written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from core.patches.patch_kit import KINDS as OPERATION_KINDS
from core.patches.patch_kit import bits, near_key, patch_of, random_operation
from safetensors.torch import load_file
from torch import Tensor, nn

from kedit_core import Editor, EditRequest
from kedit_core.errors import BaseMismatchError, InputError, StackDisturbedError
from kedit_core.models import AdapterRegistry
from kedit_core.models.builtin import plugin
from kedit_core.models.storage import first_names, names_by_parameter
from kedit_core.patches import EditPatch, LowRankDelta, PatchStack
from kedit_core.testing.tiny import tiny, tiny_model
from kedit_core.training.basis import weights_digests

accelerate = pytest.importorskip("accelerate")

DOWN = "model.layers.1.mlp.down_proj.weight"
GPT2_DOWN = "transformer.h.1.mlp.c_proj.weight"
TIED = "transformer.wte.weight"
IDS = torch.arange(2, 26).reshape(2, 12)
REQUEST = EditRequest(prompt="The capital of Ruritania is", subject="Ruritania", target_new="Strelsau")
ROME = {"layer": 1, "mom2_adjustment": False, "v_num_grad_steps": 3, "context_templates": ["{}"]}
WAYS = ("memory", "disk", "mixed")


def offloaded(way: str, folder: Path, model: Any) -> Any:
    """The model with its weights elsewhere: all in memory, all in a folder, or one block in a folder."""
    if way == "memory":
        return accelerate.cpu_offload(model, "cpu")
    if way == "disk":
        return accelerate.disk_offload(model, str(folder), "cpu")
    places = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        steps = name.split(".")
        number = next((at for at, step in enumerate(steps) if step.isdigit()), len(steps) - 2)
        places[".".join(steps[: number + 1])] = "disk" if "1" in steps[: number + 1] else "cpu"
    return accelerate.dispatch_model(model, places, offload_dir=str(folder))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def operation_at(model: nn.Module, name: str, kind: str = "low_rank_delta", seed: int = 1) -> Any:
    layout = PatchStack.of(model).base_of([name]).tensors[name].layout
    return random_operation(name, model.get_parameter(name).shape, layout, kind, seed, torch.float32)


def flags(model: nn.Module) -> list[tuple[str, bool]]:
    return [(name, parameter.requires_grad) for name, parameter in model.named_parameters(remove_duplicate=False)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("family", "name"), [("llama", DOWN), ("gpt2", GPT2_DOWN), ("gpt2", TIED)])
def test_the_bits_of_a_model_in_memory(way: str, family: str, name: str, tmp_path: Path) -> None:
    alone, model = tiny_model(family), offloaded(way, tmp_path, tiny_model(family))
    lone, stack = PatchStack.of(alone), PatchStack.of(model)
    base, digest, files, told = logits(alone), lone.weights_digest(), files_of(tmp_path), flags(model)
    weight = alone.get_parameter(name).detach().clone()
    assert torch.equal(logits(model), base) and stack.weights_digest() == digest
    kinds = ("low_rank_delta", "dense_delta", "sparse_delta", "replace")
    patches = [patch_of(lone, [operation_at(alone, name, kind, seed)]) for seed, kind in enumerate(kinds)]
    for patch in patches:
        assert patch_of(stack, patch.operations).id == patch.id
        lone.apply(patch)
        assert not stack.apply(patch).unverified
        edited = logits(model)
        assert torch.equal(edited, logits(alone)) and stack.weights_digest() == lone.weights_digest()
    assert not torch.equal(edited, base)
    with stack.suspended():
        assert torch.equal(logits(model), base) and stack.weights_digest() == digest
    assert torch.equal(logits(model), edited)
    assert bits(stack.base(name)) == bits(weight)
    for patch in (patches[1], patches[3]):
        lone.remove(patch)
        stack.remove(patch)
        assert stack.weights_digest() == lone.weights_digest()
    stack.check()
    stack.clear()
    assert stack.weights_digest() == digest and torch.equal(logits(model), base)
    assert files_of(tmp_path) == files and flags(model) == told


def test_the_old_tensor_is_put_back_and_a_folder_speaks_again(tmp_path: Path) -> None:
    model = tiny_model("llama")
    weights = {name: tensor.to("cpu") for name, tensor in model.state_dict().items()}
    accelerate.cpu_offload(model, "cpu", state_dict=weights)
    stack, before = PatchStack.of(model), weights[DOWN]
    with stack.applied(patch_of(stack, [operation_at(tiny_model("llama"), DOWN)])):
        assert weights[DOWN] is not before
    assert weights[DOWN] is before
    model = offloaded("disk", tmp_path, tiny_model("llama"))
    loader = model.get_submodule(DOWN.removesuffix(".weight"))._hf_hook.weights_map.dataset
    stack = PatchStack.of(model)
    with stack.applied(patch_of(stack, [operation_at(tiny_model("llama"), DOWN)])):
        # the edited weight alone is in memory
        assert list(loader.state_dict) == [DOWN]
    assert not loader.state_dict


def test_offloaded_to_its_own_checkpoint_by_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tiny_model("gpt2").save_pretrained(tmp_path / "model")
    written = files_of(tmp_path / "model")
    places = {f"transformer.{name}": "cpu" for name in ("wte", "wpe", "ln_f", "h.0", "h.2")}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model",
        device_map={**places, "lm_head": "cpu", "transformer.h.1": "disk"},
        offload_folder=tmp_path / "offload",
    )
    assert model.get_parameter(GPT2_DOWN).is_meta
    alone = tiny_model("gpt2")
    patch = patch_of(PatchStack.of(alone), [operation_at(alone, GPT2_DOWN)])
    stack, base = PatchStack.of(model), logits(model)
    with stack.applied(patch), PatchStack.of(alone).applied(patch):
        assert torch.equal(logits(model), logits(alone)) and not torch.equal(logits(model), base)
        model.save_pretrained(tmp_path / "edited")
        saved = load_file(tmp_path / "edited" / "model.safetensors")
        assert torch.equal(saved[GPT2_DOWN], alone.get_parameter(GPT2_DOWN))
    assert torch.equal(logits(model), base)
    assert files_of(tmp_path / "model") == written


@pytest.mark.parametrize("way", WAYS)
def test_a_branch_beside_an_offloaded_weight(way: str, tmp_path: Path) -> None:
    alone, model = tiny_model("llama"), offloaded(way, tmp_path, tiny_model("llama"))
    patch = patch_of(PatchStack.of(alone), [operation_at(alone, DOWN)])
    stack, before = PatchStack.of(model), logits(model)
    with stack.applied(patch, way="attached"), PatchStack.of(alone).applied(patch, way="attached"):
        assert torch.equal(logits(model), logits(alone)) and not torch.equal(logits(model), before)
        stack.check()
    assert torch.equal(logits(model), before)


def test_module_operations_know_where_an_offloaded_module_computes() -> None:
    model = accelerate.cpu_offload(tiny_model("llama"), "cpu")
    stack = PatchStack.of(model, kinds=OPERATION_KINDS)
    before = logits(model)
    with stack.applied(patch_of(stack, [near_key(["model.layers.1.mlp"], 32)])):
        (kind,) = stack.patches[0].kinds
        assert kind.live.device("model.layers.1.mlp") == torch.device("cpu") == kind.live.device()
        assert not torch.equal(logits(model), before)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("way", WAYS)
def test_somebody_else_is_noticed(way: str, tmp_path: Path) -> None:
    model = offloaded(way, tmp_path, tiny_model("llama"))
    stack = PatchStack.of(model)
    patch = patch_of(stack, [operation_at(tiny_model("llama"), DOWN)])
    stack.apply(patch)
    logits(model)
    stack.check()
    hook = model.get_submodule(DOWN.removesuffix(".weight"))._hf_hook
    entries = hook.weights_map.dataset
    memory = getattr(entries, "state_dict", entries)
    mine = memory[DOWN]
    memory[DOWN] = mine.clone()
    with pytest.raises(StackDisturbedError, match="was given other storage"):
        stack.remove(patch)
    memory[DOWN] = mine
    mine[0, 0] += 1
    with pytest.raises(StackDisturbedError, match="was written to"):
        stack.remove(patch)
    mine[0, 0] -= 1
    stack.clear()
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    if way == "memory":
        # now in memory, as any other
        assert torch.equal(logits(model), logits(tiny_model("llama")))


def test_another_base_is_refused(tmp_path: Path) -> None:
    model = offloaded("disk", tmp_path, tiny_model("llama", seed=1))
    alone = tiny_model("llama")
    with pytest.raises(BaseMismatchError, match="hashes to"):
        PatchStack.of(model).apply(patch_of(PatchStack.of(alone), [operation_at(alone, DOWN)]))
    file = tmp_path / f"{DOWN}.dat"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InputError, match="cannot be read from its file"):
        PatchStack.of(model).base(DOWN)
    file.unlink()
    with pytest.raises(InputError, match="cannot be read from its file"):
        PatchStack.of(model).base(DOWN)
    model = offloaded("memory", tmp_path, tiny_model("llama"))
    del model.get_submodule(DOWN.removesuffix(".weight"))._hf_hook.weights_map.dataset[DOWN]
    with pytest.raises(InputError, match="is not in its map of weights any more"):
        PatchStack.of(model).base(DOWN)


def test_a_base_that_is_exchanged_on_disk_under_a_patch(tmp_path: Path) -> None:
    """The edited weight is in memory, and what it would be reverted to, or built anew from, is another one."""
    model, alone = offloaded("disk", tmp_path, tiny_model("llama")), tiny_model("llama")
    stack = PatchStack.of(model)
    digest, file = stack.weights_digest(), tmp_path / f"{DOWN}.dat"
    stack.apply(patch_of(stack, [operation_at(alone, DOWN)]))
    second, edited = patch_of(stack, [operation_at(alone, DOWN, "dense_delta", 2)]), stack.weights_digest()
    before, times = file.read_bytes(), file.stat()
    file.write_bytes(bytes(len(before)))
    for change in (stack.check, stack.clear, lambda: stack.apply(second)):
        with pytest.raises(StackDisturbedError, match="had the file that its base is in written"):
            change()
    assert stack.weights_digest() == edited
    file.write_bytes(before)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    stack.clear()
    assert stack.weights_digest() == digest


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    model = offloaded("mixed", tmp_path, tiny_model("llama"))
    with pytest.raises(InputError, match="cannot be moved as one"):
        PatchStack.of(model).to("cpu")
    with pytest.raises(InputError, match="nothing fills it"):
        PatchStack.of(nn.Sequential(nn.Linear(4, 4, device="meta"))).base_of(["0.weight"])
    # one of two tied weights is kept elsewhere
    model = tiny_model("gpt2")
    accelerate.hooks.attach_align_device_hook(model.lm_head, "cpu", offload=True)
    with pytest.raises(InputError, match=r"tied to 'lm_head.weight', and only one of them is offloaded"):
        model.hf_device_map = {"transformer": "cpu", "lm_head": "disk"}
        PatchStack.of(model).base_of([TIED])
    del model.hf_device_map  # accelerate's hooks put there by hand leave none
    with pytest.raises(InputError, match=r"tied to 'lm_head.weight', and only one of them is offloaded"):
        PatchStack.of(model).base_of([TIED])
    # packed, and offloaded as well
    model = tiny_model("llama").requires_grad_(False)
    packed = nn.Parameter(torch.ones(32, 80, dtype=torch.int8), requires_grad=False)
    model.get_submodule(DOWN.removesuffix(".weight")).weight = packed
    accelerate.cpu_offload(model, "cpu")
    with pytest.raises(InputError, match="quantised and offloaded as well"):
        PatchStack.of(model).base_of([DOWN])
    # a map that cannot be written
    model = tiny_model("llama")
    model.requires_grad_(False)
    accelerate.cpu_offload(model, "cpu")
    hook = model.get_submodule(DOWN.removesuffix(".weight"))._hf_hook
    hook.weights_map = _ReadOnly(hook.weights_map)
    with pytest.raises(InputError, match="kedit cannot write"):
        PatchStack.of(model).base_of([DOWN])


class _ReadOnly:
    def __init__(self, inside: Any) -> None:
        self.inside = inside

    def __getitem__(self, key: str) -> Tensor:
        found: Tensor = self.inside[key]
        return found


@pytest.mark.parametrize("way", ["memory", "disk"])
def test_ties_that_a_folder_has_torn_are_known_by_the_configuration(way: str, tmp_path: Path) -> None:
    alone, model = tiny_model("gpt2"), offloaded(way, tmp_path, tiny_model("gpt2"))
    logits(model)
    assert model.get_parameter(TIED) is not model.get_parameter("lm_head.weight")
    assert first_names(model) == first_names(alone) == [name for name, _ in alone.named_parameters()]
    assert names_by_parameter(model)[id(model.lm_head.weight)] == [TIED, "lm_head.weight"]
    assert weights_digests(model, [torch.float32]) == weights_digests(alone, [torch.float32])
    view = AdapterRegistry(plugin.register_adapters()).for_model(model)
    assert view.aliases(TIED) == ("lm_head.weight",) and view.first_name("lm_head.weight") == TIED


def test_weights_that_are_declared_tied_and_are_not(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() * 2)
    model = offloaded("disk", tmp_path, model)
    with pytest.raises(InputError, match="their offloaded values differ"):
        PatchStack.of(model).base_of([TIED])


@pytest.mark.parametrize("way", WAYS)
def test_an_edit_is_the_same_as_in_memory(way: str, tmp_path: Path) -> None:
    """ROME's value search and key run through offloaded blocks; evaluation and generation, too."""
    results = []
    for place in ("here", way):
        model, tokenizer = tiny("llama")
        if place != "here":
            model = offloaded(way, tmp_path, model)
        told = flags(model)
        editor = Editor(model, tokenizer, method="rome", hparams=ROME)
        digest = editor.stack.weights_digest()
        result = editor.edit(REQUEST)
        assert result.evaluation is not None
        told_of = [line.split() for line in result.evaluation.summary().splitlines() if line.startswith("gen_free.")]
        results.append((result.patch, told_of, editor.generate(REQUEST.prompt, max_new_tokens=4)))
        editor.restore()
        assert editor.stack.weights_digest() == digest and flags(model) == told
    (here, *answers), (there, *others) = results
    assert answers == others
    for one, other in zip(here.operations, there.operations, strict=True):
        assert isinstance(one, LowRankDelta) and isinstance(other, LowRankDelta)
        assert torch.equal(one.left, other.left) and torch.equal(one.right, other.right)
    assert here.base == there.base


METHODS: dict[str, dict[str, Any]] = {
    "memit": {"layers": [0, 1], "v_num_grad_steps": 2, "context_lengths": [[4, 1]], "mom2_update_weight": 10.0},
    "kn": {"steps": 2},
    "grace": {"layer": 1, "n_iter": 3},
    "wise": {"layer": 1, "n_iter": 3},
    "t_patcher": {"max_epochs": 4, "min_epochs": 2, "validate_every": 4, "memory_size": 20},
}


@pytest.mark.parametrize("method", METHODS)
def test_other_methods_make_the_same_patch(method: str, tmp_path: Path) -> None:
    """Those that read weights, write provisionally, or train modules of their own."""
    found = set()
    for way in ("here", "mixed"):
        model, tokenizer = tiny("gpt2")
        model = model if way == "here" else offloaded(way, tmp_path, model)
        editor = Editor(model, tokenizer, method=method, hparams=METHODS[method])
        digest, told = editor.stack.weights_digest(), flags(model)
        found.add(editor.compute([REQUEST]).id)
        assert editor.stack.weights_digest() == digest and flags(model) == told
    assert len(found) == 1


def test_what_trains_weights_is_refused() -> None:
    model, tokenizer = tiny("llama")
    editor = Editor(accelerate.cpu_offload(model, "cpu"), tokenizer)
    from kedit_core.editing.trainable import trainable

    with pytest.raises(InputError, match="is offloaded, so it cannot be trained"), trainable(editor.model, [DOWN]):
        pass


def test_a_patch_file_made_on_an_offloaded_model_is_for_the_model_in_memory(tmp_path: Path) -> None:
    model = offloaded("disk", tmp_path, tiny_model("llama", dtype=torch.bfloat16))
    alone = tiny_model("llama", dtype=torch.bfloat16)
    patch = patch_of(PatchStack.of(model), [operation_at(alone, DOWN)])
    patch.save(tmp_path / "fact.safetensors")
    again = EditPatch.load(tmp_path / "fact.safetensors")
    assert not PatchStack.of(alone).apply(again).unverified
