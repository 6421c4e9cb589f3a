"""lora and adalora: the first step, the last one, what is left behind, masks, dtypes, seeds, the stack, no peft."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from kedit_core import Editor, EditRequest
from kedit_core.editing.context import seeded
from kedit_core.errors import InputError, MethodError, MissingExtraError, PluginError
from kedit_core.testing.snapshot import Snapshot
from kedit_core.testing.tiny import tiny
from kedit_methods_finetune import timing
from kedit_methods_finetune.hparams import AdaLoraHyperParams, LoraHyperParams
from kedit_methods_finetune.hparams.lora import AdapterHyperParams
from kedit_methods_finetune.lora.adapters import Adapters, Dropout, SvdAdapters
from kedit_methods_finetune.lora.targets import find_targets
from kedit_methods_finetune.lora.training import Chunk, train
from kedit_methods_finetune.questions import facts_of

pytestmark = pytest.mark.slow

FACT = EditRequest(prompt="The capital of France is", subject="France", target_new="Rome")
OTHER = EditRequest(prompt="Alice works in the city of", subject="Alice", target_new="Paris and London too")
METHODS = ("lora", "adalora")


def editor_on(
    family: str = "gpt2", method: str = "lora", dtype: torch.dtype = torch.float32, seed: int = 0, **hparams: Any
) -> Editor:
    model, tokenizer = tiny(family, dtype=dtype)
    return Editor(model, tokenizer, method, {"num_steps": 4, **hparams}, seed=seed)


def adapters_on(editor: Editor, **hparams: Any) -> tuple[Adapters, AdapterHyperParams]:
    settings: AdapterHyperParams
    if editor.info is not None and editor.info.name == "adalora":
        settings = AdaLoraHyperParams(**{"num_steps": 8, "dropout": 0.0, **hparams})
        cls: type[Adapters] = SvdAdapters
    else:
        settings, cls = LoraHyperParams(**{"num_steps": 8, "dropout": 0.0, **hparams}), Adapters
    targets = find_targets(editor.adapter, settings)
    return cls(peft, targets, settings, seeded(0), settings.num_steps), settings


def logits(editor: Editor) -> Tensor:
    ids = torch.tensor([editor.tokens.prompt(FACT.prompt).ids])
    more = {"decoder_input_ids": ids[:, :2]} if editor.adapter.is_encoder_decoder else {}
    with torch.no_grad():
        return editor.model(input_ids=ids, **more).logits


# ---------------------------------------------------------------- the sheet's check 7
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_before_the_first_step_logits_are_bit_identical(family: str, method: str, dtype: torch.dtype) -> None:
    editor = editor_on(family, method, dtype)
    before = logits(editor)
    adapters, _ = adapters_on(editor)
    with adapters.on(editor.model):
        assert any(module is adapters.layers[adapters.targets[0].place] for module in editor.model.modules())
        assert torch.equal(logits(editor), before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_trained_merged_and_attached_give_the_same_logits(family: str, method: str) -> None:
    """As peft's layers have it at the end of training, as the stack merges it, and as it attaches it."""
    editor = editor_on(family, method, num_steps=8, dropout=0.0)
    patch = editor.compute([FACT])
    adapters, settings = adapters_on(editor)
    context = editor.context()
    with adapters.on(editor.model):
        train(context.forward, adapters, facts_of(editor.tokens, [FACT]), settings)
        trained = logits(editor)
    assert (trained - logits(editor)).abs().max() > 1e-2
    for way in ("merged", "attached"):
        with editor.applied(patch, way=way):
            torch.testing.assert_close(logits(editor), trained, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("method", "most"), [("lora", 5), ("adalora", 12)])
def test_the_rank_of_the_delta_is_at_most_the_adapters(method: str, most: int) -> None:
    hparams = {"rank": 5} if method == "lora" else {}
    for operation in editor_on("gpt2", method, torch.float64, **hparams).compute([FACT]).operations:
        assert operation.left.shape[1] <= most
        assert 1 <= torch.linalg.matrix_rank(operation.left @ operation.right) <= most


# ---------------------------------------------------------------- the sheet's check 9
class _StopHereError(Exception):
    pass


def _everything(model: nn.Module) -> dict[str, Any]:
    """What peft and trainers like to change, and the identity of every module."""
    return {
        "modules": [(name, id(module), type(module)) for name, module in model.named_modules()],
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "config": model.config.to_dict(),
        "checkpointing": model.is_activation_checkpointing,
        "gradients": [id(p.grad) if p.grad is not None else None for p in model.parameters()],
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", [None, 1, 3, 5])
def test_the_model_is_left_as_found(method: str, stop: int | None) -> None:
    """Modules, flags, modes, hooks, config and checkpointing; also when it ends in the middle (5: the last look)."""
    editor = editor_on("llama", method, num_steps=4)
    model: Any = editor.model
    model.activation_checkpointing_enable()
    model.config.use_cache = True
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    first = next(p for p in model.parameters() if p.requires_grad)
    first.grad = torch.ones_like(first)
    for module in list(model.modules())[2::3]:
        module.training = True
    calls = []

    def count(*_: Any) -> None:
        calls.append(1)
        if len(calls) == stop:
            raise _StopHereError

    editor.adapter.block(2).register_forward_pre_hook(count)
    before, snapshot = _everything(model), Snapshot(model)
    context = editor.context()
    assert context.hparams is not None
    if stop is None:
        editor.host.compute_patch(context, (FACT,), context.hparams)
        assert len(calls) == 5
    else:
        with pytest.raises(PluginError) as stopped:
            editor.host.compute_patch(context, (FACT,), context.hparams)
        assert isinstance(stopped.value.__cause__, _StopHereError)
    assert _everything(model) == before
    assert snapshot.differences(model) == []
    assert not hasattr(model, "peft_config")


def test_dropout_of_the_model_itself_stays_off_and_no_checkpointing_is_run() -> None:
    """The model's modes in training are those of evaluation, whatever they are outside."""
    editor = editor_on("gpt2", dropout=0.0)
    quiet = editor.compute([FACT]).to_bytes()
    editor.model.train()
    editor.model.activation_checkpointing_enable()
    assert editor.compute([FACT]).to_bytes() == quiet
    assert editor.model.training


def test_base_layers_of_a_users_own_adapter_are_adapted_in_it() -> None:
    """A model with peft layers on it keeps them; ours go around the projections inside."""
    model, tokenizer = tiny("llama", dtype=torch.float64)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, model)
    editor = Editor(model, tokenizer, "lora", {"num_steps": 4, "layers": [1], "dropout": 0.0})
    names = [name for name, _ in model.named_modules()]
    result = editor.edit([FACT], evaluate=False)
    assert {op.place for op in result.patch.operations} == {
        "model.layers.1.self_attn.q_proj.base_layer.weight",
        "model.layers.1.self_attn.v_proj.weight",
    }
    losses = result.patch.state.config["epochs"]
    assert losses[-1] < losses[0]
    assert [name for name, _ in model.named_modules()] == names
    editor.restore()


# ---------------------------------------------------------------- masks
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "t5"])
def test_padded_batches_give_the_loss_of_rows_one_by_one(family: str, side: Any) -> None:
    """Against log-probabilities of whole unpadded rows; tokens of the prompt and pads enter nowhere."""
    editor = editor_on(family, dtype=torch.float64)
    facts = facts_of(editor.tokens, [FACT, OTHER])
    forward = editor.context().forward
    found = Chunk.of(forward, facts, side).losses(forward, grad=False)
    assert len({len(fact.prompt) for fact in facts}) == len({len(fact.target) for fact in facts}) == 2
    for fact, loss in zip(facts, found, strict=True):
        if editor.adapter.is_encoder_decoder:
            fed = {"input_ids": fact.prompt, "decoder_input_ids": (0, *fact.target[:-1])}
        else:
            fed = {"input_ids": fact.prompt + fact.target}
        with torch.no_grad():
            out = editor.model(**{name: torch.tensor([ids]) for name, ids in fed.items()}).logits[0].log_softmax(-1)
        start = 0 if editor.adapter.is_encoder_decoder else len(fact.prompt) - 1
        expected = torch.stack([-out[start + t, token] for t, token in enumerate(fact.target)]).mean()
        tolerance = 1e-5 if family == "llama" else 1e-10  # transformers' RMSNorm rounds to float32
        torch.testing.assert_close(loss, expected, rtol=0, atol=tolerance)


# ---------------------------------------------------------------- dtypes, seeds, dropout
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_models_train_float32_adapters(method: str, dtype: torch.dtype) -> None:
    editor = editor_on("llama", method, dtype, num_steps=20, dropout=0.0)
    adapters, _ = adapters_on(editor)
    assert {parameter.dtype for parameter in adapters.parameters()} == {torch.float32}
    patch = editor.compute([FACT])
    assert {tensor.dtype for op in patch.operations for tensor in op.tensors.values()} == {torch.float32}
    losses = patch.state.config["epochs"]
    assert losses[-1] < losses[0] - 1


def test_seeds_and_dropout_make_other_patches() -> None:
    """The same seed gives the same adapters whatever global state there is (the kit checks that); others do not."""
    made = {
        name: editor_on("gpt2", num_steps=2, **settings).compute([FACT]).operations[0]
        for name, settings in {
            "plain": {"dropout": 0.0},
            "seed": {"dropout": 0.0, "seed": 1},
            "dropout": {"dropout": 0.5},
        }.items()
    }
    assert not torch.equal(made["plain"].right, made["seed"].right)
    assert not torch.equal(made["plain"].left, made["dropout"].left)


def test_dropout_leaves_out_its_share_and_keeps_the_mean() -> None:
    dropout, ones = Dropout(0.25, seeded(0)), torch.ones(400, 100)
    assert dropout(ones) is ones
    dropout.on = True
    state = torch.get_rng_state()
    dropped = dropout(ones)
    assert torch.equal(torch.get_rng_state(), state)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert not torch.equal(dropout(ones), dropped)


def test_dropout_is_drawn_where_the_inputs_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that only has shapes: one generator there, seeded by the edit's own, which is not asked again."""
    made: list[tuple[torch.device, torch.Generator]] = []
    cpu = torch.Generator

    def generator(device: torch.device) -> torch.Generator:
        made.append((device, cpu()))
        return made[-1][1]

    there = torch.ones(4, 8, device="meta")
    edits = [seeded(7), seeded(7)]
    monkeypatch.setattr(torch, "Generator", generator)
    for edit in edits:
        dropout = Dropout(0.5, edit)
        dropout.on = True
        assert dropout(there).device == there.device
        state = edit.get_state()
        dropout(there)
        assert torch.equal(edit.get_state(), state)
    assert [device.type for device, _ in made] == ["meta", "meta"]
    assert made[0][1].initial_seed() == made[1][1].initial_seed() != cpu().initial_seed()


def test_dropout_is_off_when_the_result_is_measured() -> None:
    """The recorded loss is the edited model's own."""
    editor = editor_on("gpt2", num_steps=6, dropout=0.5)
    result = editor.edit([FACT], evaluate=False)
    forward = editor.context().forward
    loss = Chunk.of(forward, facts_of(editor.tokens, [FACT])).losses(forward, grad=False)
    assert result.patch.state.config["edits"] == [{"loss": pytest.approx(loss.item(), abs=1e-5)}]
    editor.restore()


# ---------------------------------------------------------------- steps
def test_early_stopping_uses_the_losses_before_the_steps() -> None:
    model, tokenizer = tiny("gpt2", dtype=torch.float64)
    settings = {"num_steps": 30, "dropout": 0.0}
    whole = Editor(model, tokenizer, "lora", settings).compute([FACT]).state.config
    assert (len(whole["epochs"]), whole["steps"]) == (30, 30)
    threshold = whole["epochs"][7] * 1.0001
    assert min(whole["epochs"][:7]) > threshold
    stopped = Editor(model, tokenizer, "lora", {**settings, "stop_loss": threshold}).compute([FACT])
    assert stopped.state.config["epochs"] == whole["epochs"][:8]
    assert stopped.state.config["steps"] == 7
    untouched = Editor(model, tokenizer, "lora", {**settings, "stop_loss": 1e6}).compute([FACT])
    assert untouched.state.config["steps"] == 0
    assert all(not op.left.any() for op in untouched.operations)


def test_adalora_with_all_facts_in_chunks_ends_at_its_budget() -> None:
    """The schedule spans all optimiser steps, not epochs."""
    editor = editor_on("llama", "adalora", num_steps=6, tinit=2, tfinal=3, batch_size=1, target_rank=3)
    patch = editor.compute([FACT, OTHER])
    assert patch.state.config["steps"] == 12
    assert sum(op.left.shape[1] for op in patch.operations) == 3 * 2 * 3  # rank, projections a block, blocks
    assert max(op.left.shape[1] for op in patch.operations) > min(op.left.shape[1] for op in patch.operations)


@pytest.mark.parametrize(
    "settings", [{"delta_t": 4}, {"delta_t": 50}, {"tinit": 5, "delta_t": 3}, {"num_steps": 2}], ids=str
)
def test_adalora_ends_at_its_budget_whatever_the_schedule(settings: dict[str, Any]) -> None:
    """Adam lets ranks grow back after an allocation, and short schedules do not come down all the way."""
    editor = editor_on("llama", "adalora", **{"num_steps": 6, "dropout": 0.0, "target_rank": 3, **settings})
    result = editor.edit([FACT], evaluate=False)
    assert sum(op.left.shape[1] for op in result.patch.operations) == 3 * 2 * 3  # rank, projections a block, blocks
    forward = editor.context().forward
    loss = Chunk.of(forward, facts_of(editor.tokens, [FACT])).losses(forward, grad=False)
    assert result.patch.state.config["edits"] == [{"loss": pytest.approx(loss.item(), abs=1e-5)}]
    editor.restore()


def test_the_target_that_was_not_reached_is_told() -> None:
    editor = editor_on("gpt2", num_steps=1)
    result = editor.edit([FACT], evaluate=False)
    warning = next(warning for warning in result.warnings if warning.code == "target_not_reached")
    assert warning.number == 1
    editor.restore()
    far = editor_on("gpt2", num_steps=40, dropout=0.0)
    assert not far.edit([FACT], evaluate=False).warnings


def test_a_loss_that_is_not_finite_is_refused() -> None:
    editor = editor_on("gpt2", num_steps=5, lr=1e30)
    before = Snapshot(editor.model)
    with pytest.raises(MethodError, match="lower lr"):
        editor.compute([FACT])
    assert before.differences(editor.model) == []


def test_with_append_eos_the_model_learns_to_stop() -> None:
    """What is generated is the target and nothing after it."""
    told = {}
    for append_eos in (False, True):
        editor = editor_on("gpt2", num_steps=40, dropout=0.0, append_eos=append_eos)
        editor.edit([FACT], evaluate=False)
        told[append_eos] = editor.generate(FACT.prompt, max_new_tokens=6).strip()
    assert told[True] == FACT.target_new
    assert told[False].startswith(FACT.target_new) and told[False] != FACT.target_new


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_knows_facts_learns_another(method: str) -> None:
    """With the shipped settings; afterwards the model says again what it said before."""
    editor = Editor.from_pretrained("factworld:llama", method=method)
    prompts = ["The name of the capital of Indonesia is", "The capital of New Zealand is"]
    before = [editor.answer(prompt) for prompt in prompts]
    assert before[0].strip() == "Jakarta"
    editor.edit([EditRequest(prompt=prompts[0], target_new="Seoul")], evaluate=False)
    after = [editor.answer(prompt) for prompt in prompts]
    assert after[0].strip() == "Seoul"
    assert after[1] == before[1]
    editor.restore()
    assert [editor.answer(prompt) for prompt in prompts] == before


# ---------------------------------------------------------------- the stack
@pytest.mark.parametrize("way", ["merged", "attached"])
def test_later_rounds_are_trained_on_what_is_on_the_model(way: Any) -> None:
    """Sequential editing makes a patch a round; the second is that of a model which always had the first."""
    settings = {"num_steps": 4, "dropout": 0.0}
    model, tokenizer = tiny("gpt2", dtype=torch.float64)
    editor = Editor(model, tokenizer, "lora", settings)
    first = editor.compute([FACT])
    editor.apply(first, way=way)
    second = editor.compute([OTHER])
    assert second.parents == (first.id,)
    other, _ = tiny("gpt2", dtype=torch.float64)
    alone = Editor(other, tokenizer, "lora", settings).compute([OTHER])
    with torch.no_grad():
        for op in first.operations:
            dict(other.named_parameters())[op.place] += (op.left @ op.right).T
    expected = Editor(other, tokenizer, "lora", settings).compute([OTHER])
    for op, wanted, without in zip(second.operations, expected.operations, alone.operations, strict=True):
        torch.testing.assert_close(op.left, wanted.left, rtol=0, atol=1e-8)
        assert (op.left - without.left).abs().max() > 1e-5
    editor.restore()


# ---------------------------------------------------------------- refused before any work
@pytest.mark.parametrize("method", METHODS)
def test_without_peft_the_error_says_what_to_install(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft" or "finetune.lora" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "peft", None)
    editor = editor_on("gpt2", method)
    before = Snapshot(editor.model)
    with pytest.raises(
        MissingExtraError, match=rf"'{method}' needs peft.*pip install 'kedit-methods-finetune\[peft\]'"
    ):
        editor.edit([FACT], evaluate=False)
    assert before.differences(editor.model) == []


def test_a_fact_longer_than_the_model_is_refused() -> None:
    editor = editor_on("gpt2")
    long = EditRequest(prompt="The city of " * 60 + "is", target_new="Rome")
    with pytest.raises(InputError, match="128 positions"):
        editor.edit([FACT, long], evaluate=False)


def tensor_bytes(patch: Any) -> int:
    return sum(tensor.nbytes for operation in patch.operations for tensor in operation.tensors.values())


def test_plan_tells_places_and_memory() -> None:
    editor = editor_on("llama", rank=4, layers=[0, 2])
    plan = editor.plan([FACT])
    assert plan["places"] == [f"model.layers.{i}.self_attn.{n}_proj.weight" for i in (0, 2) for n in ("q", "v")]
    numbers = 2 * (4 * (32 + 32) + 4 * (32 + 16))
    assert plan["memory_bytes"] > 16 * numbers
    assert any(f"4 adapters of rank 4, {numbers} numbers; 4 epochs" in note for note in plan["notes"])
    assert plan["memory_bytes"] < editor_on("llama", rank=4, batch_size=2).plan([FACT, OTHER])["memory_bytes"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("method", "settings"), [("lora", {}), ("adalora", {"num_steps": 1}), ("adalora", {"parity": True})], ids=str
)
def test_plan_tells_the_size_of_the_patch(method: str, settings: dict[str, Any], dtype: torch.dtype) -> None:
    editor = editor_on("gpt2", method, dtype, **settings)
    before = Snapshot(editor.model)
    plan = editor.plan([FACT, OTHER])
    assert before.differences(editor.model) == []
    assert plan["patch_bytes"] == tensor_bytes(editor.compute([FACT, OTHER]))
    # each round is a patch of its own
    assert editor.plan([FACT, OTHER], scenario="sequential")["patch_bytes"] == 2 * plan["patch_bytes"]


@pytest.mark.parametrize("method", METHODS)
def test_plan_times_a_step(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that counts passes through the last block."""
    passes: list[int] = []
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: float(len(passes))))
    editor = editor_on("gpt2", method, num_steps=5, batch_size=2)
    editor.adapter.block(2).register_forward_pre_hook(lambda *_: passes.append(1))
    facts = [FACT, OTHER, FACT]
    assert editor.plan(facts)["seconds"] == 5 * 2  # epochs, chunks
    assert editor.plan(facts, scenario="sequential")["seconds"] == 5 * 3
    assert len(passes) == 2 * 3
    assert editor.plan(facts[:1])["seconds"] == 5
