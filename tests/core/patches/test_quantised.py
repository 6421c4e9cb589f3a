"""Quantised models: branches beside packed weights that stay as they are, edits computed through them, and refusals.

Run with each quantisation library that is installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from core.patches.patch_kit import patch_of, random_operation
from torch import Tensor, nn

from kedit_core import Editor, EditRequest
from kedit_core.cli.root import kedit
from kedit_core.editing.trainable import trainable
from kedit_core.errors import BaseMismatchError, InputError, StackDisturbedError, UnsupportedModelError
from kedit_core.models.storage import matrix_of, stops_gradients, storage_of, value_of
from kedit_core.patches import EditPatch, LowRankDelta, PatchStack
from kedit_core.patches.hooks import Branch
from kedit_core.testing.tiny import tiny, tiny_model

DOWN = "model.layers.1.mlp.down_proj.weight"
IDS = torch.arange(2, 26).reshape(2, 12)
REQUEST = EditRequest(prompt="The capital of Ruritania is", subject="Ruritania", target_new="Strelsau")
ROME = {"layer": 1, "mom2_adjustment": False, "v_num_grad_steps": 3, "context_templates": ["{}"]}


def small() -> Any:
    """A tiny Llama wide enough for blocks of 64 numbers, and its tokenizer."""
    return tiny("llama", hidden_size=64, intermediate_size=128)


class HalfPacked(nn.Linear):
    """Two numbers in a byte and one scale: a stand-in for libraries that are not installed."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__(dense.in_features, dense.out_features, bias=dense.bias is not None)
        self.bias = dense.bias
        self.register_buffer("scale", dense.weight.detach().abs().max() / 7)
        whole = (dense.weight.detach() / self.scale).round().to(torch.int8) + 8  # type: ignore[operator]
        flat = whole.reshape(-1).to(torch.uint8)
        self.weight = nn.Parameter((flat[::2] << 4 | flat[1::2]).unsqueeze(1), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        flat = torch.stack((self.weight[:, 0] >> 4, self.weight[:, 0] & 15), dim=1).to(torch.int8) - 8
        weight = flat.reshape(self.out_features, self.in_features).to(input.dtype) * self.scale
        return nn.functional.linear(input, weight, self.bias)


def stand_in(model: Any, _: Path) -> Any:
    for layer in model.model.layers:
        layer.mlp.down_proj = HalfPacked(layer.mlp.down_proj)
        layer.self_attn.o_proj = HalfPacked(layer.self_attn.o_proj)
    return model


def loaded(model: Any, folder: Path, config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    model.save_pretrained(folder / "whole")
    return AutoModelForCausalLM.from_pretrained(
        folder / "whole", quantization_config=config, device_map="cpu", dtype=torch.float32
    ).eval()


def torchao_int8(model: Any, folder: Path) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return loaded(model, folder, TorchAoConfig(Int8WeightOnlyConfig()))


def torchao_int4(model: Any, _: Path) -> Any:
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_

    quantize_(model, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(16)))
    return model


def bitsandbytes_int8(model: Any, folder: Path) -> Any:
    from transformers import BitsAndBytesConfig

    return loaded(model, folder, BitsAndBytesConfig(load_in_8bit=True))


def bitsandbytes_nf4(model: Any, folder: Path) -> Any:
    from transformers import BitsAndBytesConfig

    settings = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    return loaded(model, folder, BitsAndBytesConfig(load_in_4bit=True, **settings))


def quanto_int8(model: Any, folder: Path) -> Any:
    from transformers import QuantoConfig

    return loaded(model, folder, QuantoConfig(weights="int8"))


MAKERS: Mapping[str, tuple[str, Callable[[Any, Path], Any]]] = {
    "stand-in": ("torch", stand_in),
    "torchao int8": ("torchao", torchao_int8),
    "torchao int4": ("torchao", torchao_int4),
    "bitsandbytes int8": ("bitsandbytes", bitsandbytes_int8),
    "bitsandbytes nf4": ("bitsandbytes", bitsandbytes_nf4),
    "quanto int8": ("optimum", quanto_int8),
}


@pytest.fixture(scope="module", params=list(MAKERS))
def quantised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny Llama with packed weights that has run once (some libraries repack then)."""
    library, make = MAKERS[request.param]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    model = make(small()[0], tmp_path_factory.mktemp("quantised"))
    logits(model)
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def whole_patch(kind: str = "low_rank_delta") -> EditPatch:
    """A patch for the model before it was quantised."""
    model = small()[0]
    return patch_of(
        PatchStack.of(model),
        [random_operation(DOWN, model.get_parameter(DOWN).shape, "out_in", kind, 1, torch.float32)],
    )


def insides(model: Any) -> list[bytes]:
    weight = model.get_parameter(DOWN)
    return [part.contiguous().view(torch.uint8).numpy().tobytes() for part in value_of(model, DOWN, weight)]


def test_a_branch_stands_beside_the_packed_weight(quantised: Any) -> None:
    stack, patch, weight = PatchStack.of(quantised), whole_patch(), quantised.get_parameter(DOWN)
    before, packed, digest = logits(quantised), insides(quantised), stack.weights_digest()
    assert storage_of(quantised, DOWN).kind == "packed" and stack.place(DOWN).shape == (64, 128)
    with pytest.raises(BaseMismatchError, match="cannot be compared"):
        stack.apply(patch)
    installed = stack.apply(patch, allow_unverified=True)
    assert installed.way == "attached" and installed.unverified and stack.patches[0].unverified
    assert quantised.get_parameter(DOWN) is weight and insides(quantised) == packed
    assert not torch.equal(logits(quantised), before)
    # exactly the layer's own output and the branch
    layer, value = quantised.get_submodule(DOWN.removesuffix(".weight")), torch.randn(3, 128)
    operation = patch.operations[0]
    assert isinstance(operation, LowRankDelta)
    with stack.suspended():
        assert torch.equal(logits(quantised), before)
        plain = layer(value)
    beside = plain.float() + Branch.of(operation, torch.device("cpu"), torch.float32)(value)
    assert torch.equal(layer(value), beside.to(plain.dtype))
    stack.check()
    stack.clear()
    assert torch.equal(logits(quantised), before) and insides(quantised) == packed
    assert stack.weights_digest() == digest


@pytest.mark.parametrize("kind", ["dense_delta", "sparse_delta", "replace"])
def test_what_cannot_be_exact_is_refused(quantised: Any, kind: str) -> None:
    stack, before = PatchStack.of(quantised), logits(quantised)
    with pytest.raises(InputError, match="only a low-rank delta can be put beside it"):
        stack.apply(whole_patch(kind), allow_unverified=True)
    with pytest.raises(InputError, match="is quantised"):
        stack.apply(whole_patch(), way="merged", allow_unverified=True)
    assert stack.patches == () and torch.equal(logits(quantised), before)


def test_what_needs_the_numbers_is_refused(quantised: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="stored packed"):
        matrix_of(quantised, DOWN)
    with pytest.raises(InputError, match="is quantised, so it cannot be trained"), trainable(quantised, [DOWN]):
        pass


def test_an_edit_is_computed_through_packed_weights(quantised: Any, tmp_path: Path) -> None:
    """ROME on the quantised model; the patch goes back on it, and on the model that was quantised."""
    whole, tokenizer = small()
    editor = Editor(quantised, tokenizer, method="rome", hparams=ROME)
    before, packed = logits(quantised), insides(quantised)
    if stops_gradients(quantised) is not None:
        with pytest.raises(UnsupportedModelError, match="lets no gradient through"):
            editor.edit(REQUEST)
        assert torch.equal(logits(quantised), before) and insides(quantised) == packed
        return
    result = editor.edit(REQUEST)
    assert result.way == "attached" and result.evaluation is not None and editor.stack.patches[0].unverified
    assert not torch.equal(logits(quantised), before) and insides(quantised) == packed
    editor.generate(REQUEST.prompt, max_new_tokens=2)
    assert editor.evaluate([REQUEST]).summary()
    editor.restore()
    assert torch.equal(logits(quantised), before)
    assert result.patch is not None
    result.patch.save(tmp_path / "fact.safetensors")
    patch = EditPatch.load(tmp_path / "fact.safetensors")
    assert dict(patch.base.tensors[DOWN].sha256) == {} and patch.base.tensors[DOWN].shape == (64, 128)
    base = logits(whole)
    stack = PatchStack.of(whole)
    with pytest.raises(BaseMismatchError, match="cannot be compared"):
        stack.apply(patch)
    with stack.applied(patch, allow_unverified=True) as installed:
        assert installed.way == "merged" and installed.unverified and not torch.equal(logits(whole), base)
    assert torch.equal(logits(whole), base)


def test_somebody_else_is_noticed(quantised: Any) -> None:
    stack = PatchStack.of(quantised)
    stack.apply(whole_patch(), allow_unverified=True)
    parts = value_of(quantised, DOWN, quantised.get_parameter(DOWN))
    part = next(part for part in parts if part.numel() > 128)
    with torch.no_grad():
        part.view(-1)[0].bitwise_xor_(1)
    with pytest.raises(StackDisturbedError, match="was written to"):
        stack.check()
    with torch.no_grad():
        part.view(-1)[0].bitwise_xor_(1)
    layer = quantised.get_submodule(DOWN.removesuffix(".weight"))
    mine = layer.weight
    layer._parameters["weight"] = nn.Parameter(torch.zeros(64, 128))
    with pytest.raises(StackDisturbedError, match="was exchanged"):
        stack.check()
    layer._parameters["weight"] = mine


def test_a_layer_that_lets_no_gradient_through_is_found() -> None:
    class Blind(HalfPacked):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.detach())

    model, tokenizer = small()
    assert stops_gradients(model) is None
    model.model.layers[1].mlp.down_proj = Blind(model.model.layers[1].mlp.down_proj)
    assert stops_gradients(model) == "model.layers.1.mlp.down_proj"
    with pytest.raises(UnsupportedModelError, match="would optimise blindly"):
        Editor(model, tokenizer, method="rome", hparams=ROME).edit(REQUEST)


def test_on_the_command_line_it_has_to_be_allowed(tmp_path: Path) -> None:
    """A folder that transformers loads quantised, with the library that can be saved."""
    pytest.importorskip("bitsandbytes")
    model, tokenizer = small()
    bitsandbytes_int8(model, tmp_path).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    whole_patch().save(tmp_path / "fact.safetensors")
    words = ["generate", str(tmp_path / "model"), "--patch", str(tmp_path / "fact.safetensors"), "--prompt", "The"]
    refused = CliRunner().invoke(kedit, words)
    assert refused.exit_code == 1 and "allow unverified" in refused.stderr
    done = CliRunner().invoke(kedit, [*words, "--allow-unverified"])
    assert done.exit_code == 0, done.stderr


def test_a_model_with_no_packed_weight_is_plain() -> None:
    model = tiny_model("llama")
    assert storage_of(model, DOWN).kind == "plain" and matrix_of(model, DOWN) is model.get_parameter(DOWN)
