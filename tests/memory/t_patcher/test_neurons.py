"""The kind ``t_patcher.neurons`` and the same neurons as ordinary weights: acceptance checks 1 and 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from t_patcher_tools import FRANCE, REQUESTS, editor_on, logits_of, neurons_of
from torch import Tensor
from transformers import AutoModelForCausalLM

from kedit_core import Editor, EditPatch
from kedit_core.errors import BaseMismatchError, PatchFormatError, ScopeError, UnsupportedModelError
from kedit_core.patches import ModuleOperation
from kedit_core.testing.snapshot import weights
from kedit_methods_memory.t_patcher import with_neurons_as_weights
from kedit_methods_memory.t_patcher.neurons import ACTIVATIONS, KIND, Neurons
from kedit_methods_memory.t_patcher.place import LastMlp

ALL = ("gpt2", "gptj", "gpt_neo", "gpt_neox", "opt", "llama", "phi3", "gemma2", "gemma3", "t5", "t5_gated")
PLAIN = ("gpt2", "gptj", "gpt_neo", "gpt_neox", "opt")
DISPARATE = ["The capital of France is", "Bob", "In the city of Paris there is a tower."]


def some(width: int, count: int = 3, activation: str = "gelu_tanh", seed: int = 0, scale: float = 1.0) -> Neurons:
    draw = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(count, width, generator=draw) for _ in range(2))
    return Neurons(keys / width**0.5, torch.randn(count, generator=draw), scale * values, activation)


def patch_of(editor: Editor, neurons: Neurons) -> EditPatch:
    place = LastMlp.of(editor.adapter)
    return editor.context().new_patch([neurons.operation(place.places)], [FRANCE])


@pytest.mark.parametrize("family", ALL)
def test_check_1_zero_values_leave_every_bit(family: str, tmp_path: Path) -> None:
    editor = editor_on(family, tmp_path, torch.float32)
    before, found = logits_of(editor), weights(editor.model)
    neurons = some(editor.adapter.hidden_size)
    with editor.applied(patch_of(editor, evolve(neurons, values=torch.zeros_like(neurons.values)))):
        assert torch.equal(logits_of(editor), before)
        assert weights(editor.model) == found
    with editor.applied(patch_of(editor, neurons)):
        assert not torch.allclose(logits_of(editor), before)
        assert weights(editor.model) == found


@pytest.mark.parametrize("family", ALL)
def test_the_neurons_do_what_the_formula_says(family: str, tmp_path: Path) -> None:
    """Against a copy of the model whose MLP is wrapped by hand."""
    editor = editor_on(family, tmp_path)
    neurons = some(editor.adapter.hidden_size, activation="silu")
    with editor.applied(patch_of(editor, neurons)):
        found = logits_of(editor)
    block = editor.adapter.head_blocks[-1]
    leaf = editor.adapter.adapter.mlp.rpartition(".")[2]
    module = next(each for name, each in block.named_modules() if name.rpartition(".")[2] == leaf)
    into = block.fc1 if family == "opt" else module
    seen: list[Tensor] = []
    handles = [
        into.register_forward_pre_hook(lambda _, args: seen.append(args[0])),
        module.register_forward_hook(lambda _, __, out: out + hand(seen[-1]).reshape(out.shape)),
    ]

    def hand(query: Tensor) -> Tensor:
        z = query @ neurons.keys.double().T + neurons.bias.double()
        return (z / (1 + (-z).exp())) @ neurons.values.double()

    wanted = logits_of(editor)
    for handle in handles:
        handle.remove()
    assert torch.allclose(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", PLAIN)
def test_check_2_beside_the_weights_or_in_them(family: str, tmp_path: Path) -> None:
    editor = editor_on(family, tmp_path)
    activation = {"opt": "relu", "gpt_neox": "gelu"}.get(family, "gelu_tanh")
    patch = patch_of(editor, some(editor.adapter.hidden_size, activation=activation))
    plain = with_neurons_as_weights(editor, patch)
    with editor.applied(patch):
        beside = logits_of(editor)
        again = with_neurons_as_weights(editor, patch)
        assert torch.equal(logits_of_model(editor, again), logits_of_model(editor, plain))
    assert torch.allclose(logits_of_model(editor, plain), beside, rtol=0, atol=1e-6)
    assert not torch.allclose(logits_of(editor), beside, rtol=0, atol=1e-3)
    plain.save_pretrained(tmp_path / "plain")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float64)
    assert torch.allclose(logits_of_model(editor, loaded), logits_of_model(editor, plain), rtol=0, atol=1e-10)


def logits_of_model(editor: Editor, model: Any) -> Tensor:
    with torch.no_grad():
        return torch.cat(
            [
                model(editor.tokenizer(text, return_tensors="pt")["input_ids"]).logits[0]
                for text in ("The capital of France is", "Alice works in")
            ]
        )


def test_weights_cannot_hold_what_they_have_no_place_for(tmp_path: Path) -> None:
    for family, activation, wrong in (
        ("llama", "silu", "gated"),
        ("phi3", "silu", "gated"),
        ("t5", "relu", "two stacks"),
        ("gpt2", "relu", "neurons with relu"),
    ):
        editor = editor_on(family, tmp_path, torch.float32)
        found = weights(editor.model)
        with pytest.raises(UnsupportedModelError, match=wrong):
            with_neurons_as_weights(editor, patch_of(editor, some(32, activation=activation)))
        assert weights(editor.model) == found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_a_silent_relu_neuron_leaves_every_bit(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Of the rows where nothing fires, in a batch where in others something does."""
    editor = editor_on(family, tmp_path, dtype)
    encoded = padded(editor, DISPARATE)
    with torch.no_grad():
        before = editor.model(**encoded).logits
        query = query_of(editor, DISPARATE[0])
    mean = query.float().mean(0)
    keys = (query[-1].float() - mean)[None]
    neurons = Neurons(keys, -0.9 * (keys @ query[-1].float()), torch.ones_like(keys), "relu")
    with editor.applied(patch_of(editor, neurons)), torch.no_grad():
        after = editor.model(**encoded).logits
    assert not torch.equal(after[0], before[0])
    silent = [row for row in (1, 2) if torch.equal(after[row], before[row])]
    assert silent, "the neuron fires everywhere"


def padded(editor: Editor, texts: list[str], side: Any = "right") -> dict[str, Tensor]:
    batch = editor.forward.batch([editor.tokens.prompt(text).ids for text in texts], side=side)
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def query_of(editor: Editor, text: str) -> Tensor:
    place = LastMlp.of(editor.adapter)
    batch = editor.forward.batch([editor.tokens.prompt(text).ids])
    return editor.forward.run(batch, capture=(place.query,)).activations[place.query][0]


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "t5"])
def test_padding_and_caches_change_nothing(family: str, tmp_path: Path) -> None:
    editor = editor_on(family, tmp_path, torch.float32)
    with editor.applied(patch_of(editor, some(32, scale=4.0))):
        alone = [editor.generate(text, max_new_tokens=6) for text in DISPARATE]
        assert editor.generate(DISPARATE, max_new_tokens=6) == alone
        for text, wanted in zip(DISPARATE, alone, strict=True):
            encoded = padded(editor, [text, DISPARATE[2]], "left")
            for cached in (True, False):
                ids = editor.model.generate(
                    **encoded, max_new_tokens=6, do_sample=False, use_cache=cached, pad_token_id=editor.tokens.pad_id
                )
                assert tail_of(editor, encoded, ids) == wanted.strip()
    assert [editor.generate(text, max_new_tokens=6) for text in DISPARATE] != alone


def tail_of(editor: Editor, encoded: Any, ids: Tensor) -> str:
    start = 1 if editor.adapter.is_encoder_decoder else encoded["input_ids"].shape[1]
    prompt = [] if start == 1 else ids[0, :start].tolist()
    return editor.tokens.continuation(prompt, ids[0, start:].tolist()).strip()


def test_two_places_need_the_whole_model(tmp_path: Path) -> None:
    editor = editor_on("opt", tmp_path, torch.float32)
    place = LastMlp.of(editor.adapter)
    assert len(place.places) == 2
    with editor.applied(patch_of(editor, some(32))), pytest.raises(ScopeError, match="call the whole model"):
        editor.adapter.mlp_in(editor.adapter.num_layers - 1)[0](torch.zeros(1, 32))


def test_what_is_no_neurons_is_refused(tmp_path: Path) -> None:
    editor = editor_on("gpt2", tmp_path, torch.float32)
    place = LastMlp.of(editor.adapter)
    keys, bias = torch.zeros(2, 32), torch.zeros(2)
    good = {"keys": keys, "bias": bias, "values": keys}
    relu = {"activation": "relu"}
    cases: list[tuple[Any, Any, Any, type[Exception]]] = [
        (place.places, {}, good, PatchFormatError),
        (place.places, {"activation": "exp"}, good, PatchFormatError),
        (place.places, {"activation": []}, good, PatchFormatError),
        (("transformer.h.0.mlp.c_fc",), relu, good, BaseMismatchError),
        (("transformer.h.0.mlp.c_proj", *place.places), relu, good, BaseMismatchError),
        (("transformer.wte",), relu, good, BaseMismatchError),
        (place.places, {**relu, "more": 1}, good, PatchFormatError),
        (place.places, relu, {"keys": keys, "bias": bias}, PatchFormatError),
        (place.places, relu, {**good, "values": torch.zeros(3, 32)}, PatchFormatError),
        (place.places, relu, {**good, "bias": torch.zeros(2, dtype=torch.int64)}, PatchFormatError),
        (place.places, relu, {name: each[:0] for name, each in good.items()}, PatchFormatError),
        ((*place.places, "transformer.h.0.mlp", "transformer.h.1.mlp"), relu, good, PatchFormatError),
        (
            place.places,
            relu,
            {"keys": torch.zeros(2, 31), "bias": bias, "values": torch.zeros(2, 31)},
            BaseMismatchError,
        ),
    ]
    found = weights(editor.model)
    for places, config, tensors, error in cases:
        patch = editor.context().new_patch([ModuleOperation(places, KIND, 1, config, tensors)], [FRANCE])
        with pytest.raises(error):
            editor.apply(patch)
        assert not editor.stack.patches and weights(editor.model) == found


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_those_of_transformers(name: str) -> None:
    from transformers.activations import ACT2FN

    z = torch.linspace(-5, 5, 41, dtype=torch.float64)
    theirs = {"gelu_tanh": "gelu_new"}.get(name, name)
    assert torch.allclose(ACTIVATIONS[name](z), ACT2FN[theirs](z), rtol=0, atol=1e-12)


def test_neurons_of_real_edits_as_weights(tmp_path: Path) -> None:
    editor = editor_on("gpt2", tmp_path)
    result = editor.edit(REQUESTS, evaluate=False)
    assert len(neurons_of(result.patch).bias) > 1
    plain = with_neurons_as_weights(editor, result.patch)
    assert torch.allclose(logits_of_model(editor, plain), logits_of(editor), rtol=0, atol=1e-6)
