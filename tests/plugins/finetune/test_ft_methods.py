"""The methods: which weights they change, what their patches say, replay, plans, presets and refusals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attrs import evolve
from ft_tools import ALICE, BOB, FRANCE, REQUESTS, editor_on, row_loss

from kedit_core import Editor
from kedit_core.errors import HyperParamsError, InputError
from kedit_core.hparams import ModelShape, load_presets, resolve
from kedit_core.patches import EditPatch, PrivateRequests
from kedit_core.testing.snapshot import Snapshot
from kedit_core.testing.tiny import tiny
from kedit_methods_finetune import timing
from kedit_methods_finetune.hparams import FtBfHyperParams, FtHyperParams, FtLHyperParams, FtMHyperParams
from kedit_methods_finetune.methods import ft_bf, ft_l, ft_m

METHODS = {"ft_l": FtLHyperParams, "ft_m": FtMHyperParams, "ft_bf": FtBfHyperParams}


# ------------------------------------------------------------------ acceptance check 2
@pytest.mark.parametrize(
    ("family", "settings", "names"),
    [
        ("gpt2", {}, ["transformer.h.1.mlp.c_proj.weight", "transformer.h.1.mlp.c_proj.bias"]),
        ("gpt2", {"train_bias": False}, ["transformer.h.1.mlp.c_proj.weight"]),
        ("gptj", {}, ["transformer.h.1.mlp.fc_out.weight", "transformer.h.1.mlp.fc_out.bias"]),
        ("opt", {}, ["model.decoder.layers.1.fc2.weight", "model.decoder.layers.1.fc2.bias"]),
        ("llama", {}, ["model.layers.1.mlp.down_proj.weight"]),
        ("llama", {"layers": [0, 2]}, [f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 2)]),
        ("llama", {"part": "mlp_in"}, [f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up")]),
        ("llama", {"part": "mlp"}, [f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")]),
        ("llama", {"part": "attn_out"}, ["model.layers.1.self_attn.o_proj.weight"]),
        ("llama", {"part": "attn"}, [f"model.layers.1.self_attn.{name}_proj.weight" for name in "qkvo"]),
        ("t5", {}, ["decoder.block.1.layer.2.DenseReluDense.wo.weight"]),
        ("t5", {"stack": "encoder"}, ["encoder.block.1.layer.1.DenseReluDense.wo.weight"]),
        ("t5_gated", {"part": "mlp", "layers": [0]},
         [f"decoder.block.0.layer.2.DenseReluDense.{name}.weight" for name in ("wi_0", "wi_1", "wo")]),
    ],
)  # fmt: skip
def test_only_the_chosen_weights_change(family: str, settings: dict[str, Any], names: list[str]) -> None:
    editor = editor_on(family, dtype=torch.float32, num_steps=2, **settings)
    before = {name: parameter.detach().clone() for name, parameter in editor.model.named_parameters()}
    patch = editor.compute(REQUESTS)
    assert [operation.place for operation in patch.operations] == names
    assert all(operation.values.dtype == torch.float32 for operation in patch.operations)  # type: ignore[union-attr]
    editor.apply(patch)
    changed = [name for name, now in editor.model.named_parameters() if not torch.equal(now, before[name])]
    assert sorted(changed) == sorted(names)


def test_a_whole_block_is_all_of_its_weights_and_of_no_other() -> None:
    """Whole parts of names: block 1 is not block 10."""
    model, tokenizer = tiny("llama", num_hidden_layers=12)
    editor = Editor(model, tokenizer, "ft_m", {"layers": [1], "part": "block", "num_steps": 1})
    places = [operation.place for operation in editor.compute(FRANCE).operations]
    block = [name for name, _ in model.named_parameters() if name.startswith("model.layers.1.")]
    assert places == block


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_the_patch_is_what_was_trained(family: str, dtype: torch.dtype) -> None:
    """The losses in the patch are those of the model with the patch on it; and it can be taken off."""
    editor = editor_on(family, dtype=dtype, num_steps=8)
    before = Snapshot(editor.model)
    result = editor.edit(REQUESTS, evaluate=False)
    told = [edit["loss"] for edit in result.patch.state.config["edits"]]
    with torch.no_grad():
        found = [float(row_loss(editor, editor.model, each, "target_new")) for each in REQUESTS]
    assert told == pytest.approx(found, rel=1e-4 if dtype == torch.float32 else 0.1)
    assert sum(told) / 3 < result.patch.state.config["epochs"][0] * 0.9
    assert result.patch.state.config["steps"] == 8
    editor.restore()
    assert before.differences(editor.model) == []


def test_rounds_go_on_from_the_weights_of_those_before() -> None:
    editor = editor_on("gpt2", num_steps=10)
    result = editor.edit(REQUESTS, scenario="sequential", evaluate=False)
    assert [fact["case_id"] for fact in result.patch.requests] == ["a", "b", "c"]  # type: ignore[union-attr]
    second = result.patches[1].state.config["epochs"][0]
    fresh = editor_on("gpt2", num_steps=10).compute(ALICE).state.config["epochs"][0]
    assert second != pytest.approx(fresh, rel=1e-3)


# ------------------------------------------------------------------ breadth-first, replay
def replaying(**settings: Any) -> Editor:
    steps = {"num_steps": 80, "lr": 0.02, "stop_loss": 0.4}
    return editor_on("gpt2", "ft_bf", torch.float32, **{"append_eos": False, **steps, **settings})


def worst(editor: Editor) -> float:
    with torch.no_grad():
        return max(float(row_loss(editor, editor.model, each, "target_new")) for each in REQUESTS)


def test_replay_keeps_the_facts_of_earlier_rounds() -> None:
    apart, together = replaying(), replaying(replay=True)
    for editor in (apart, together):
        editor.edit(REQUESTS, scenario="sequential", evaluate=False)
    # the final norm of so narrow a model leaves no loss below some 0.3
    assert worst(together) < 0.8 < 1.5 < worst(apart)


def test_replayed_are_the_live_patches_of_this_method_with_other_prompts() -> None:
    editor = replaying(replay=True, num_steps=1, stop_loss=0.0)
    first, second = editor.edit(FRANCE, evaluate=False).patch, editor.edit(ALICE, evaluate=False).patch
    assert "replayed" not in first.state.config
    assert second.state.config["replayed"] == 1
    assert [fact["case_id"] for fact in second.requests] == ["b"]  # type: ignore[union-attr]
    assert len(second.state.config["edits"]) == 1
    # a new answer to an old question takes its place; what is off the model is forgotten
    again = editor.compute(evolve(FRANCE, target_new="Rome"))
    assert again.state.config["replayed"] == 1
    editor.remove(first)
    editor.remove(second)
    assert "replayed" not in editor.compute(BOB).state.config
    other = Editor(editor.model, editor.tokenizer, "ft_m", {"layers": [1], "num_steps": 1})
    other.edit(FRANCE, evaluate=False)
    assert "replayed" not in editor.compute(BOB).state.config


def test_private_patches_cannot_be_replayed_and_say_so() -> None:
    editor = replaying(replay=True, num_steps=1, stop_loss=0.0)
    patch = editor.compute(FRANCE)
    facts = patch.requests
    assert not isinstance(facts, PrivateRequests)
    editor.apply(evolve(patch, requests=PrivateRequests.of(facts)))
    result = editor.edit(ALICE, evaluate=False)
    assert "replayed" not in result.patch.state.config
    assert [w.number for w in result.warnings if w.code == "private_facts"] == [1.0]


def test_replayed_is_trained_as_if_given_together() -> None:
    """With the first round's step undone by its size, two rounds with replay see what one call sees."""
    settings = {"append_eos": False, "shuffle": False, "num_steps": 1, "lr": 1e-12}
    together = editor_on("gpt2", "ft_bf", **settings).compute([FRANCE, ALICE])
    editor = editor_on("gpt2", "ft_bf", **settings, replay=True)
    editor.edit(FRANCE, evaluate=False)
    second = editor.compute(ALICE)
    assert second.state.config["epochs"] == pytest.approx(together.state.config["epochs"], rel=1e-6)


# ------------------------------------------------------------------ plans
@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_plan_says_what_will_happen_and_does_not_do_it(family: str) -> None:
    editor = editor_on(family, dtype=torch.float32, num_steps=7, batch_size=2)
    before = Snapshot(editor.model)
    plan = editor.plan(REQUESTS)
    assert before.differences(editor.model) == []
    patch = editor.compute(REQUESTS)
    assert plan["places"] == [operation.place for operation in patch.operations]
    size = sum(operation.values.numel() for operation in patch.operations)  # type: ignore[union-attr]
    # weights and gradients twice in float32, masters and their gradients, Adam's moments, the delta
    assert plan["memory_bytes"] > 28 * size
    assert "at most 7 epochs of 2 steps" in plan["notes"][0]
    assert plan["seconds"] > 0
    stored = sum(operation.values.nbytes for operation in patch.operations)  # type: ignore[union-attr]
    assert plan["patch_bytes"] == stored
    assert editor.plan(REQUESTS, scenario="sequential")["patch_bytes"] == 3 * stored
    alone = editor.plan(REQUESTS, scenario="single")
    assert "at most 7 epochs of 3 steps" in alone["notes"][0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_plan_tells_the_size_of_the_patch_whatever_the_dtype(dtype: torch.dtype) -> None:
    editor = editor_on("gpt2", dtype=dtype, num_steps=1)
    stored = sum(operation.values.nbytes for operation in editor.compute(FRANCE).operations)  # type: ignore[union-attr]
    assert editor.plan([FRANCE])["patch_bytes"] == stored


def test_plan_times_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that counts passes through the last block."""
    passes: list[int] = []
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: float(len(passes))))
    editor = editor_on("gpt2", num_steps=7, batch_size=2)
    editor.adapter.block(2).register_forward_pre_hook(lambda *_: passes.append(1))
    assert editor.plan(REQUESTS)["seconds"] == 7 * 2
    assert editor.plan(REQUESTS, scenario="single")["seconds"] == 7 * 3


# ------------------------------------------------------------------ refusals
def refused(editor: Editor, match: str) -> None:
    before = Snapshot(editor.model)
    with pytest.raises(InputError, match=match):
        editor.edit([FRANCE], evaluate=False)
    assert before.differences(editor.model) == []


def test_layers_and_stacks_the_model_has_not_are_refused() -> None:
    refused(editor_on("gpt2", layers=[1, 3]), "layer 3 is not in this model's decoder of 3 blocks")
    refused(editor_on("t5", layers=[3]), "decoder of 3 blocks")
    refused(editor_on("t5", layers=[4], stack="encoder"), "encoder of 4 blocks")
    refused(editor_on("gpt2", stack="encoder"), "no encoder")
    refused(editor_on("t5", part="attn_out"), "2 parts called 'o'")
    assert editor_on("t5", layers=[3], stack="encoder", num_steps=1).compute(FRANCE).operations


def test_quantised_weights_are_refused() -> None:
    editor = editor_on("llama", dtype=torch.float32)
    projection = editor.adapter.mlp_out(1)
    packed = torch.nn.Parameter(projection.weight.detach().to(torch.int8), requires_grad=False)
    projection._parameters["weight"] = packed
    refused(editor, "is quantised")


@pytest.mark.parametrize(
    "settings",
    [{"layers": []}, {"layers": [2, 1]}, {"layers": [-1]}, {"lr": 0}, {"norm_constraint": 0.0}, {"part": "neck"},
     {"num_steps": 0}, {"batch_size": 0}, {"objective": "all"}, {"anchor": "start"}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(HyperParamsError):
        FtLHyperParams.from_dict({"layers": [0], **settings})


# ------------------------------------------------------------------ presets
@pytest.mark.parametrize("info", [ft_l, ft_m, ft_bf], ids=lambda info: info.name)
def test_presets_are_valid_and_within_their_models(info: Any) -> None:
    cls = METHODS[info.name]
    presets = load_presets(info.presets)
    assert len(presets) >= 5
    for preset in presets:
        settings = cls.from_dict(preset.hparams, preset.name)
        assert preset.origin
        assert all(settings.layers[-1] < shape.num_layers for shape in preset.shapes)
        assert settings.objective == ("prompt_last" if info is ft_l else "target_new")


def preset_of(info: Any, architecture: str, layers: int, width: int) -> FtHyperParams:
    shape = ModelShape(architecture=architecture, num_layers=layers, hidden_size=width)
    resolved = resolve(METHODS[info.name], shape, presets=info.presets)
    made: FtHyperParams = resolved.hparams
    return made


def test_published_settings() -> None:
    """Rows of the sheet's table."""
    xl = preset_of(ft_l, "GPT2LMHeadModel", 48, 1600)
    assert (xl.layers, xl.num_steps, xl.lr, xl.norm_constraint, xl.batch_size) == ((0,), 25, 5e-4, 5e-4, 128)
    gptj = preset_of(ft_l, "GPTJForCausalLM", 28, 4096)
    assert (gptj.layers, gptj.norm_constraint) == ((0,), 5e-5)
    llama = preset_of(ft_m, "LlamaForCausalLM", 32, 4096)
    assert (llama.layers, llama.norm_constraint, llama.batch_size) == ((21,), None, 1)
    t5 = preset_of(ft_m, "T5ForConditionalGeneration", 24, 1024)
    assert (t5.layers, t5.num_steps, t5.stack) == ((0, 21), 50, "decoder")
    mistral = preset_of(ft_bf, "MistralForCausalLM", 32, 4096)
    assert (mistral.layers, mistral.part, mistral.lr, mistral.batch_size) == ((23,), "block", 5e-5, 100)


@pytest.mark.parametrize(("width", "epsilon"), [(1024, 2e-3), (1280, 1e-3), (1600, 5e-4), (4096, 5e-5)])
def test_bounds_of_unknown_models_follow_the_published_ones(width: int, epsilon: float) -> None:
    made = FtLHyperParams.for_depth(ModelShape(architecture="OPTForCausalLM", num_layers=24, hidden_size=width))
    assert made["layers"] == (0,)
    assert made["norm_constraint"] == pytest.approx(epsilon, rel=0.3)


def test_layers_of_unknown_models_follow_the_depth() -> None:
    for depth, layer in ((32, 21), (48, 32), (6, 4), (1, 0)):
        shape = ModelShape(architecture="PhiForCausalLM", num_layers=depth, hidden_size=512)
        assert FtMHyperParams.for_depth(shape)["layers"] == (layer,)


def test_a_patch_is_read_back_with_its_record(tmp_path: Any) -> None:
    patch = editor_on("gpt2", "ft_l", torch.float32, norm_constraint=0.01).compute(FRANCE)
    patch.save(tmp_path / "p.safetensors")
    loaded = EditPatch.load(tmp_path / "p.safetensors")
    assert loaded.state.config == patch.state.config
    assert loaded.hparams["norm_constraint"] == 0.01
