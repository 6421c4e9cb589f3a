"""PEFT adapters as patches: the logits of PEFT's own model, and what is refused."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from peft_tools import dense, low_rank, patch_of, patched_logits, randoms
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kedit_core import Editor, EditPatch
from kedit_core.cli.root import kedit
from kedit_core.errors import BaseMismatchError, InputError
from kedit_core.patches import LowRankDelta
from kedit_core.testing.tiny import tiny_model
from kedit_peft import export_peft, read_peft
from kedit_peft.patterns import Patterns
from kedit_peft.reading import scaled

A, B = (
    "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight",
    "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight",
)
PLACE = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for family in ("llama", "gpt2", "qwen2"):
        tiny_model(family).save_pretrained(folder / family)
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter with alpha / r = 2 on one projection of llama, written by hand as PEFT writes it."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    write(folder, {A: randoms(2, 80), B: randoms(32, 2, seed=1)})
    return folder


def write(folder: Path, tensors: dict[str, Tensor] | None = None, **settings: Any) -> Path:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["down_proj"], **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if tensors is not None:
        save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def made_by_peft(model: nn.Module, folder: Path, **settings: Any) -> dict[str, Tensor]:
    """Save an adapter with random factors; the weights of PEFT's model with it merged."""
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    wrapped.save_pretrained(folder)
    return dict(wrapped.merge_and_unload().named_parameters())


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"target_modules": "all-linear", "r": 4, "lora_alpha": 6}),
        ("llama", {"target_modules": r".*\.mlp\.(up|down)_proj", "r": 3, "lora_alpha": 8, "use_rslora": True}),
        (
            "llama",
            {
                "target_modules": ["q_proj", "v_proj", "lm_head"],
                "rank_pattern": {"v_proj": 5, r"layers\.0\.self_attn\.q_proj": 2},
                "alpha_pattern": {r"layers.[12].self_attn.v_proj": 3, "^model.layers.0.self_attn.q_proj": 7},
                "lora_dropout": 0.3,
            },
        ),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "r": 2, "lora_alpha": 5, "fan_in_fan_out": True}),
        ("llama", {"target_modules": ["embed_tokens", "down_proj"], "r": 2, "lora_alpha": 2}),
    ],
    ids=["all-linear", "rslora", "patterns", "gpt2", "embedding"],
)
def test_a_patch_does_what_peft_does(family: str, settings: dict[str, Any], bases: Path, tmp_path: Path) -> None:
    wanted = made_by_peft(tiny_model(family), tmp_path / "adapter", **settings)
    patch = read_peft(tmp_path / "adapter", bases / family, name="org/base", revision="abc")
    editor = Editor(tiny_model(family), None, None)
    before = {name: weight.detach().clone() for name, weight in editor.model.named_parameters()}
    editor.apply(patch, way="merged")
    for name, weight in editor.model.named_parameters():
        torch.testing.assert_close(weight, wanted[name], rtol=0, atol=1e-6)
        assert torch.equal(weight, before[name]) == (name not in patch.places)
    assert (patch.base.name, patch.base.revision, patch.requests, patch.parents) == ("org/base", "abc", (), ())
    assert patch.method.name == "peft-lora" and set(patch.base.tensors) == set(patch.places)
    for tensor in patch.base.tensors.values():
        assert set(tensor.sha256) == {"float32", "bfloat16", "float16"}


def test_factors_in_half_precision_stay_so_where_the_scale_is_exact(bases: Path, adapter: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(adapter / "adapter_model.safetensors").items()}
    write(adapter, tensors)
    (operation,) = read_peft(adapter, bases / "llama").operations
    assert isinstance(operation, LowRankDelta) and operation.left.dtype == operation.right.dtype == torch.bfloat16
    assert torch.equal(operation.left, tensors[B] * 2)
    write(adapter, tensors, lora_alpha=3)
    (operation,) = read_peft(adapter, bases / "llama").operations
    assert isinstance(operation, LowRankDelta) and operation.left.dtype == operation.right.dtype == torch.float32
    assert torch.equal(operation.left, tensors[B].float() * 1.5) and torch.equal(operation.right, tensors[A].float())
    write(adapter, {A: tensors[A], B: tensors[B].half()})
    (operation,) = read_peft(adapter, bases / "llama").operations
    assert isinstance(operation, LowRankDelta) and operation.left.dtype == torch.float32


def test_scaling_is_exact_or_rounded_once() -> None:
    small = torch.tensor([6e-8, 1.0, 60000.0], dtype=torch.float16)
    assert scaled(small, 0.5).dtype == torch.float32, "half of the smallest number is none in float16"
    assert scaled(small, 2.0).dtype == torch.float32, "twice 60000 overflows"
    assert scaled(small[1:2], 4.0).dtype == torch.float16
    third = scaled(randoms(50), 1 / 3)
    assert third.dtype == torch.float32 and torch.equal(third, (randoms(50).double() / 3).float())
    with pytest.raises(InputError, match="too large for float32"):
        scaled(torch.tensor([3e38]), 3.0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_there_and_back_again(family: str, bases: Path, tmp_path: Path) -> None:
    model = tiny_model(family)
    places = ["model.layers.0.self_attn.q_proj.weight", PLACE]
    if family == "gpt2":
        places = ["transformer.h.0.attn.c_attn.weight", "transformer.h.1.mlp.c_proj.weight"]
    patch = patch_of(model, [low_rank(model, places[0], 3), dense(model, places[1]), low_rank(model, places[1], 1)])
    export_peft(patch, tmp_path / "out")
    back = read_peft(tmp_path / "out", bases / family)
    assert float((patched_logits(family, [back]) - patched_logits(family, [patch])).abs().max()) <= 1e-5
    first = back.operations[0]
    assert isinstance(first, LowRankDelta) and first.rank == 3, "the padding has gone"
    assert dict(back.base.tensors) == dict(patch.base.tensors)


def test_reading_gives_the_same_patch_each_time(bases: Path, adapter: Path) -> None:
    first, second = (read_peft(adapter, bases / "llama") for _ in range(2))
    assert first.id == second.id
    assert EditPatch.from_bytes(first.to_bytes()).hparams["lora_alpha"] == 4.0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"peft_type": "IA3"}, "its peft_type is 'IA3' and only LORA"),
        ({"use_dora": True}, r"DoRA scales each row .* \(use_dora\); merge it with PEFT"),
        ({"bias": "lora_only"}, "it changes biases"),
        ({"modules_to_save": ["lm_head"]}, "whole modules are saved"),
        ({"trainable_token_indices": [1]}, "single tokens"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layers of the model are repeated"),
        ({"lora_bias": True}, "the factors have biases"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "fused experts"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base weights as well"),
        ({"init_lora_weights": 1}, "init_lora_weights is 1"),
        ({"wobble": 3}, "it has the setting 'wobble', which kedit does not know"),
        ({"r": 0}, "r is 0; it is a whole number from 1"),
        ({"r": "2"}, "r is '2'"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"lora_alpha": [4]}, r"lora_alpha is \[4\]"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
        ({"rank_pattern": {"a": 1.5}}, "rank_pattern.a is 1.5"),
        ({"alpha_pattern": [1]}, r"alpha_pattern is \[1\]"),
        ({"alpha_pattern": {"(a+)+b": 1}}, "no simple pattern"),
        ({"alpha_pattern": {"(a|aa)*b": 1}}, "no simple pattern"),
        ({"alpha_pattern": {".*.*.*b": 1}}, "no simple pattern"),
        ({"alpha_pattern": {r"(a)\1": 1}}, "no simple pattern"),
        ({"alpha_pattern": {"a" * 600: 1}}, "no simple pattern"),
        ({"alpha_pattern": {"(": 1}}, "cannot be read"),
        ({"alpha_pattern": {f"m{i}": 1 for i in range(2000)}}, "at most 1024"),
        ({"lora_alpha": 0}, "changes nothing"),
        ({"r": 3}, "has rank 2, which adapter_config.json does not have"),
    ],
)
def test_settings_that_are_no_plain_lora(settings: dict[str, Any], told: str, bases: Path, adapter: Path) -> None:
    with pytest.raises(InputError, match=told):
        read_peft(write(adapter, **settings), bases / "llama")


def test_settings_of_training_do_not_matter(bases: Path, adapter: Path) -> None:
    peft = pytest.importorskip("peft")
    plain = read_peft(adapter, bases / "llama")
    peft.LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", init_lora_weights="gaussian").save_pretrained(
        adapter
    )
    assert read_peft(adapter, bases / "llama").operations[0].left.equal(plain.operations[0].left)  # type: ignore[union-attr]


def nan(shape: tuple[int, int]) -> Tensor:
    return torch.full(shape, float("nan"))


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({A: randoms(2, 80)}, "has A and not one A and one B"),
        ({A: randoms(2, 80), B: randoms(32, 3)}, "their ranks must agree"),
        ({A: randoms(2, 80), B: randoms(32, 2, 1)}, "factors have two sizes"),
        ({A: randoms(0, 80), B: randoms(32, 0)}, "none of them 0"),
        ({A: torch.ones(2, 80, dtype=torch.int8), B: randoms(32, 2)}, "is of dtype I8"),
        ({A: nan((2, 80)), B: randoms(32, 2)}, "hold NaN or infinity"),
        ({A: randoms(2, 80), B: torch.zeros(32, 2)}, "changes nothing"),
        ({A.replace("base_model.", ""): randoms(2, 80)}, "is no factor of a LoRA"),
        ({A.replace("lora_A", "lora_magnitude_vector"): randoms(2, 80)}, "is no factor of a LoRA"),
        ({"base_model.model.lora_A.weight": randoms(2, 80)}, "is no factor of a LoRA"),
        ({A.replace("down_proj", "down\x07proj"): randoms(2, 80)}, "printable characters"),
        ({A.replace("down_proj", "d" * 2000): randoms(2, 80)}, "printable characters"),
        ({}, "has no factors"),
    ],
)
def test_tensors_that_are_no_factors(tensors: dict[str, Tensor], told: str, bases: Path, adapter: Path) -> None:
    with pytest.raises(InputError, match=told):
        read_peft(write(adapter, tensors), bases / "llama")


def test_folders_that_are_no_adapter(bases: Path, adapter: Path, tmp_path: Path) -> None:
    weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    with pytest.raises(InputError, match=r"no adapter_config.json in it"):
        read_peft(tmp_path / "nowhere", bases / "llama")
    for text, told in (
        ("[1]", "is not a JSON object"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        (" " * (2 << 20), "more than 1048576 bytes"),
        ("{}", "its peft_type is None"),
    ):
        config.write_text(text)
        with pytest.raises(InputError, match=told):
            read_peft(adapter, bases / "llama")
    write(adapter)
    whole = weights.read_bytes()
    for data in (whole[:-5], whole[:20], b"", b"\xff" * 64, (2**40).to_bytes(8, "little") + whole[8:]):
        weights.write_bytes(data)
        with pytest.raises(InputError, match="cannot be read"):
            read_peft(adapter, bases / "llama")
    weights.unlink()
    with pytest.raises(InputError, match=r"there is no adapter_model\.safetensors"):
        read_peft(adapter, bases / "llama")
    (adapter / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match=r"pickled \(.bin\), and kedit opens no pickle; load it with PEFT"):
        read_peft(adapter, bases / "llama")
    weights.mkdir()
    with pytest.raises(InputError, match="pickled"):
        read_peft(adapter, bases / "llama")


def test_models_that_it_is_not_for(bases: Path, adapter: Path) -> None:
    with pytest.raises(BaseMismatchError, match=f"has no weight '{PLACE}', which the adapter changes"):
        read_peft(adapter, bases / "gpt2")
    write(adapter, {A: randoms(2, 32), B: randoms(80, 2)})
    with pytest.raises(BaseMismatchError, match=r"is \[32, 80\] .* are for \[80, 32\]"):
        read_peft(adapter, bases / "llama")
    head = "base_model.model.lm_head.lora_{}.weight"
    vocabulary = tiny_model("qwen2").config.vocab_size
    write(adapter, {head.format("A"): randoms(2, 32), head.format("B"): randoms(vocabulary, 2)})
    with pytest.raises(InputError, match=r"'lm_head.weight' is tied to 'model.embed_tokens.weight' in the base"):
        read_peft(adapter, bases / "qwen2")
    norm = "base_model.model.model.norm.lora_{}.weight"
    write(adapter, {norm.format("A"): randoms(2, 1), norm.format("B"): randoms(32, 2)})
    with pytest.raises(BaseMismatchError, match=r"is \[32\] "):
        read_peft(adapter, bases / "llama")


def test_base_weights_that_peft_saves_too_must_be_those_of_the_base(bases: Path, adapter: Path) -> None:
    factors = load_file(adapter / "adapter_model.safetensors")
    own = tiny_model("llama").get_parameter("lm_head.weight").detach()
    name = "base_model.model.lm_head.base_layer.weight"
    assert read_peft(write(adapter, {**factors, name: own.clone()}), bases / "llama").places == (PLACE,)
    with pytest.raises(InputError, match=r"other values of 'lm_head.weight' than the base"):
        read_peft(write(adapter, {**factors, name: own + 1}), bases / "llama")
    with pytest.raises(InputError, match=r"a weight 'lm_head.weight' of shape \[3, 32\], unlike the base"):
        read_peft(write(adapter, {**factors, name: own[:3].clone()}), bases / "llama")


def test_hostile_patterns_take_no_time() -> None:
    """Each of the slowest patterns that are let in, on names longer than any model has."""
    hostile = Patterns.of({f"(a|{i}).*a.*b": 1.0 for i in range(64)})
    started = time.process_time()
    assert [hostile.value("a." * 60 + str(i), 7.0) for i in range(10)] == [7.0] * 10
    assert time.process_time() - started < 10
    with pytest.raises(InputError, match="more than 64 patterns"):
        Patterns.of({f"{i}.*": 1.0 for i in range(65)})


def test_the_command(bases: Path, adapter: Path, tmp_path: Path) -> None:
    write(adapter, base_model_name_or_path="org/other")
    command = ["patch", "from-peft", str(adapter), "--base", str(bases / "llama"), "-o"]
    done = CliRunner().invoke(kedit, [*command, str(tmp_path / "p.safetensors")])
    assert done.exit_code == 0, done.output
    patch = EditPatch.load(tmp_path / "p.safetensors")
    assert patch.id in done.stdout and patch.places == (PLACE,) and patch.base.name is None
    done = CliRunner().invoke(kedit, [*command, str(tmp_path / "q.safetensors"), "--json"])
    assert json.loads(done.stdout)["id"] == patch.id
    done = CliRunner().invoke(
        kedit, ["patch", "verify", str(tmp_path / "p.safetensors"), "--base", str(bases / "llama")]
    )
    assert done.exit_code == 0, done.output
    shutil.rmtree(adapter)
    done = CliRunner().invoke(kedit, [*command, str(tmp_path / "r.safetensors")])
    assert done.exit_code == 2 and "Error: " in done.stderr and not (tmp_path / "r.safetensors").exists()


def test_the_command_tells_of_another_base(adapter: Path, tmp_path: Path) -> None:
    module = "base_model.model.model.layers.0.mlp.down_proj"
    tensors = {f"{module}.lora_A.weight": randoms(2, 512), f"{module}.lora_B.weight": randoms(192, 2)}
    write(adapter, tensors, base_model_name_or_path="org/other")
    out = tmp_path / "p.safetensors"
    done = CliRunner().invoke(kedit, ["patch", "from-peft", str(adapter), "--base", "factworld:llama", "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert "the adapter says that it is for org/other, and the patch was made for factworld:llama" in done.stderr
    assert EditPatch.load(out).base.name == "factworld:llama"
