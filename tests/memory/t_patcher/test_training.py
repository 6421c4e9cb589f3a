"""Training: acceptance checks 3, 5 and 8, the two paths, and the settings that change how it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from t_patcher_tools import FRANCE, REQUESTS, TEXTS, PlainTPatcher, editor_on, edits_of, ids_of, logits_of, neurons_of
from torch import Tensor

from kedit_core import Editor, EditRequest
from kedit_core.errors import InputError, MethodError, RequestError
from kedit_core.forward import generate_ids
from kedit_core.testing.snapshot import Snapshot
from kedit_methods_memory.hparams.t_patcher import TPatcherHyperParams
from kedit_methods_memory.t_patcher.memory import memories_for
from kedit_methods_memory.t_patcher.method import read_example
from kedit_methods_memory.t_patcher.neurons import Neurons
from kedit_methods_memory.t_patcher.place import LastMlp, activation_of
from kedit_methods_memory.t_patcher.states import Kept, Whole
from kedit_methods_memory.t_patcher.training import Weights

FAMILIES = ("gpt2", "gptj", "gpt_neo", "gpt_neox", "opt", "llama", "phi3", "gemma2", "gemma3", "t5", "t5_gated")


def example_on(editor: Editor, request: EditRequest = FRANCE, **more: Any) -> Any:
    hparams = evolve(settings_of(editor), **more)
    return read_example(editor.context(), LastMlp.of(editor.adapter), request, hparams)


def settings_of(editor: Editor) -> TPatcherHyperParams:
    assert editor.settings is not None and isinstance(editor.settings.hparams, TPatcherHyperParams)
    return editor.settings.hparams


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_check_3_a_neuron_begins_at_one_on_its_own_position(family: str, tmp_path: Path) -> None:
    editor = editor_on(family, tmp_path, torch.float32)
    example = example_on(editor)
    own = example.query[list(example.wrong)]
    weights = Weights(own, settings_of(editor), torch.Generator().manual_seed(0))
    neurons = weights.neurons("relu")
    assert torch.allclose(neurons.inputs(own).diagonal(), torch.ones(len(own)), rtol=0, atol=1e-6)
    assert not bool(neurons.bias.any())
    drawn = torch.randn(own.shape[1], len(own), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(neurons.values.detach(), 10 * drawn.T, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_kept_gives_the_logits_of_the_whole_model(family: str, tmp_path: Path) -> None:
    """Also with neurons of an earlier round on the model, and as trained in: with gradients."""
    editor = editor_on(family, tmp_path)
    place = LastMlp.of(editor.adapter)
    editor.edit(REQUESTS[1], evaluate=False)
    example = example_on(editor)
    assert isinstance(example.path, Kept)
    whole = Whole(editor.forward, place, example.path.asked)
    draw = torch.Generator().manual_seed(1)
    found = []
    for path in (example.path, whole):
        draw.manual_seed(1)
        keys, values = (torch.randn(2, 32, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2))
        bias = torch.zeros(2, dtype=torch.float64).requires_grad_()
        reading = path.read(Neurons(keys, bias, values, "silu"))
        gradients = torch.autograd.grad(reading.logits.log_softmax(-1)[..., 3].sum(), (keys, bias, values))
        found.append((reading.logits.detach(), reading.query, *gradients))
    bound = 1e-5 if family in ("llama", "phi3", "gemma2", "gemma3", "t5", "t5_gated") else 1e-8
    for kept, full in zip(*found, strict=True):
        assert kept.shape == full.shape
        assert torch.allclose(kept, full, rtol=bound, atol=bound)


SLOW = ("gpt_neox", "opt")
SHORT = EditRequest(prompt="The capital of France is", target_new="the")

PLACES = {
    "gpt2": ("transformer.h.2.mlp", "transformer.h.2.mlp", "gelu_tanh"),
    "gpt_neox": ("gpt_neox.layers.2.mlp", "gpt_neox.layers.2.mlp", "gelu"),
    "opt": ("model.decoder.layers.2.fc1", "model.decoder.layers.2.fc2", "relu"),
    "t5": ("decoder.block.2.layer.2.DenseReluDense", "decoder.block.2.layer.2.DenseReluDense", "relu"),
}


@pytest.mark.parametrize(("limit", "act_loss", "top"), [(1, "top5_exp", 5), (5, "exp", 1 << 20)])
@pytest.mark.parametrize("family", ["gpt2", "t5", *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)])
def test_check_5_training_is_that_of_the_whole_model(
    family: str, limit: int, act_loss: str, top: int, tmp_path: Path
) -> None:
    """With several neurons their inputs begin equal, so which of them are among the top five is anybody's choice."""
    more: dict[str, Any] = {"spare_subject": False, "seed": 3, "max_neurons": limit, "act_loss": act_loss}
    editor = editor_on(family, tmp_path, **more)
    into, mlp, activation = PLACES[family]
    request = FRANCE if limit > 1 else SHORT
    place = LastMlp.of(editor.adapter)
    assert (place.read, place.write) == (into, mlp)
    memories = memories_for(editor.context(), place, settings_of(editor))
    count = min(limit, len(example_on(editor, request).wrong))
    drawn = torch.randn(32, count, generator=torch.Generator().manual_seed(3))
    vectors = (memories.train.vectors, memories.validation.vectors)
    plain = PlainTPatcher(editor, into, mlp, activation).train(request, vectors, drawn, limit=limit, top=(top, 1000))
    patch = editor.compute(request)
    neurons = neurons_of(patch)
    (record,) = edits_of(patch)
    assert neurons.activation == activation and len(plain["seen"]) > 1, "the stop rule had no part in it"
    assert record["epochs"] == plain["epochs"] and record["positions"] == plain["wrong"]
    for name in ("keys", "bias", "values"):
        assert torch.allclose(getattr(neurons, name), plain[name], rtol=0, atol=1e-8), name
    assert record["memory_loss"] == pytest.approx(min(plain["seen"]), rel=1e-8)
    slow = editor_on(family, tmp_path, **more, fast=False).compute(request)
    assert torch.allclose(neurons_of(slow).values, neurons.values, rtol=0, atol=1e-8)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_check_8_a_neuron_for_each_error_but_no_more_than_allowed(family: str, tmp_path: Path) -> None:
    request = EditRequest(
        prompt="The capital of France is", target_new="the old town in the north of Norway, near Oslo"
    )
    editor = editor_on(family, tmp_path, max_epochs=2)
    prompt, target = ids_of(editor, request)
    if editor.adapter.is_encoder_decoder:
        fed = torch.tensor([[editor.model.config.decoder_start_token_id, *target[:-1]]])
        logits = editor.model(input_ids=torch.tensor([prompt]), decoder_input_ids=fed).logits[0]
    else:
        logits = editor.model(torch.tensor([[*prompt, *target[:-1]]])).logits[0, len(prompt) - 1 :]
    wrong = [t for t, token in enumerate(target) if int(logits[t].argmax()) != token]
    assert len(wrong) > 5
    result = editor.edit(request, evaluate=False)
    (record,) = edits_of(result.patch)
    assert record["positions"] == wrong[:5] and len(neurons_of(result.patch).bias) == record["neurons"] == 5
    assert "more_errors_than_neurons" in {warning.code for warning in result.warnings}
    for limit in (1, len(wrong)):
        patch = editor_on(family, tmp_path, max_epochs=1, max_neurons=limit).compute(request)
        assert edits_of(patch)[0]["positions"] == wrong[:limit]


@pytest.mark.parametrize("family", ["gpt_neox", "t5"])
def test_check_8_a_right_answer_gets_an_empty_patch(family: str, tmp_path: Path) -> None:
    editor = editor_on(family, tmp_path, torch.float32)
    request = right_already(editor)
    before = logits_of(editor)
    result = editor.edit(request, evaluate=False)
    assert not result.patch.operations and edits_of(result.patch) == [{"neurons": 0}]
    assert torch.equal(logits_of(editor), before)
    result.patch.save(tmp_path / "empty.safetensors")
    editor.restore()


def right_already(editor: Editor) -> EditRequest:
    """A prompt whose likeliest next token can be written as a target."""
    for text in TEXTS:
        ids, _ = ids_of(editor, EditRequest(prompt=text, target_new="the"))
        inputs = {"input_ids": torch.tensor([ids])}
        if editor.adapter.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.zeros((1, 1), dtype=torch.long)
        likeliest = int(editor.model(**inputs).logits[0, -1].argmax())
        said = editor.tokenizer.decode([likeliest]).strip()
        request = EditRequest(prompt=text, target_new=said or "?")
        if said and list(editor.tokens.pair(request.prompt, request.target_new).target_ids) == [likeliest]:
            return request
    raise AssertionError("no text goes on with a token that can be written")


def test_an_edit_makes_the_target_the_greedy_answer(tmp_path: Path) -> None:
    for family in ("gpt2", "opt", "llama", "t5"):
        editor = editor_on(family, tmp_path, torch.float32, max_epochs=120, max_neurons=9)
        result = editor.edit(REQUESTS, evaluate=False)
        assert all(record["right"] for record in edits_of(result.patch)), family
        for request in REQUESTS:
            target = ids_of(editor, request)[1]
            (ids,) = generate_ids(
                editor.model, editor.adapter, editor.tokens, [editor.tokens.prompt(request.prompt).ids], len(target)
            )
            assert ids == target, family


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_dropout_in_training_is_seeded_and_leaves_no_trace(family: str, tmp_path: Path) -> None:
    def run(noise: int, **more: Any) -> Neurons:
        torch.manual_seed(noise)
        editor = editor_on(family, tmp_path, torch.float32, seed=1, **{"max_epochs": 12, **more})
        with torch.no_grad():
            before = Snapshot(editor.model)
            neurons = neurons_of(editor.compute(FRANCE))
            assert not before.differences(editor.model)
        return neurons

    first, second = run(1, dropout=True), run(2, dropout=True)
    assert torch.equal(first.values, second.values) and torch.equal(first.keys, second.keys)
    assert not torch.allclose(first.values, run(1).values)


def test_with_no_probability_dropout_changes_nothing(tmp_path: Path) -> None:
    """The copies are then really run, and every loss is over all of them."""
    from kedit_core.testing.tiny import tiny_model

    def patch(**more: Any) -> Neurons:
        model = tiny_model("gpt2", dtype=torch.float64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        return neurons_of(editor_on("gpt2", tmp_path, model=model, **more).compute(FRANCE))

    for more in ({"max_neurons": 1}, {"act_loss": "exp", "memory_tiled": True, "memory_loss": "top40_exp+top30_exp"}):
        real, counted = patch(dropout=True, **more), patch(**more)
        assert torch.allclose(real.keys, counted.keys, rtol=0, atol=1e-8)
        assert torch.allclose(real.values, counted.values, rtol=0, atol=1e-8)


def test_what_is_kept_is_the_best_right_state_or_the_last(tmp_path: Path) -> None:
    def record(**more: Any) -> dict[str, Any]:
        return edits_of(editor_on("gpt2", tmp_path, **{"max_epochs": 200, **more}).compute(FRANCE))[0]

    best, last, first = record(), record(keep="last"), record(use_validation=False)
    assert best["epochs"] == last["epochs"] and best["memory_loss"] <= last["memory_loss"]
    assert first["epochs"] < best["epochs"] and first["right"]
    assert first["epochs"] > 20 and first["epochs"] % 10 == 0


def test_settings_reach_training(tmp_path: Path) -> None:
    def values(**more: Any) -> Tensor:
        return neurons_of(editor_on("gpt2", tmp_path, **{"max_epochs": 5, **more}).compute(FRANCE)).values

    usual = values()
    for more in (
        {"lr": 0.02},
        {"weight_decay": 0.5},
        {"clip_norm": 0.01},
        {"amplify": None},
        {"freeze_amplify": True},
        {"act_loss": "exp"},
        {"act_weight": 5.0},
        {"act_margin": 2.0},
        {"memory_loss": "exp+exp"},
        {"memory_loss": "non_use"},
        {"memory_loss": "kl_10"},
        {"memory_weight": 1.0},
        {"memory_margin_1": 0.0},
        {"memory_margin_2": 0.0},
        {"label_smoothing": 0.1},
        {"activation": "relu"},
        {"append_eos": True},
        {"spare_subject": False},
    ):
        found = values(**more)
        assert found.shape != usual.shape or not torch.equal(found, usual), more


def test_a_divergence_keeps_the_samples_answers(tmp_path: Path) -> None:
    editor = editor_on("gpt2", tmp_path, torch.float32, memory_loss="kl_60", max_epochs=200)
    memory = memories_for(editor.context(), LastMlp.of(editor.adapter), settings_of(editor)).validation
    asked = memory.asked(editor.forward, 60)
    before = editor.forward.run(asked.batch, logits_at=asked.cells).logits
    (record,) = edits_of(editor.edit(FRANCE, evaluate=False).patch)
    after = editor.forward.run(asked.batch, logits_at=asked.cells).logits
    assert before is not None and after is not None and record["right"]
    p, q = before.double().softmax(-1), after.double().softmax(-1)
    assert record["memory_loss"] == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-3, abs=1e-6)


def test_half_precision_models_are_edited(tmp_path: Path) -> None:
    for family, dtype in (("gpt2", torch.bfloat16), ("llama", torch.bfloat16), ("t5", torch.bfloat16)):
        editor = editor_on(family, tmp_path, dtype, max_epochs=200)
        patch = editor.edit(FRANCE, evaluate=False).patch
        assert neurons_of(patch).keys.dtype == torch.float32
        assert edits_of(patch)[0]["right"], family


def test_bad_input_is_refused_before_any_work(tmp_path: Path) -> None:
    calls: list[int] = []

    def refused(error: type[Exception], match: str, request: EditRequest = FRANCE, **more: Any) -> None:
        editor = editor_on("gpt2", tmp_path, torch.float32, **more)
        editor.adapter.block(0).register_forward_pre_hook(lambda *_: calls.append(1))
        with pytest.raises(error, match=match):
            editor.edit([REQUESTS[1], request], evaluate=False)
        assert not calls

    refused(InputError, "there is no text", options={"corpus": tmp_path / "nowhere.txt"})
    refused(RequestError, "shorten it", evolve(FRANCE, target_new="long " * 200))
    refused(RequestError, "target", evolve(FRANCE, target_new=" "))
    editor = editor_on("gpt2", tmp_path, torch.float32)
    editor.model.config.activation_function = "mish"
    with pytest.raises(InputError, match="activation is 'mish'"):
        editor.edit(FRANCE, evaluate=False)
    assert activation_of(editor.adapter, "relu") == "relu"


def test_a_diverging_loss_is_an_error(tmp_path: Path) -> None:
    editor = editor_on("gpt2", tmp_path, torch.float32, lr=1e30)
    with torch.no_grad():
        before = Snapshot(editor.model)
        with pytest.raises(MethodError, match="the loss is"):
            editor.edit(FRANCE, evaluate=False)
        assert not before.differences(editor.model)
