"""The exporter ``peft``: its files, its options, what it refuses, and what PEFT makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from click.testing import CliRunner
from peft_tools import dense, logits, low_rank, patch_of, patched_logits, randoms, shape_at
from safetensors import safe_open
from safetensors.torch import load_file

from kedit_core import EditPatch
from kedit_core.cli.root import kedit
from kedit_core.errors import InputError
from kedit_core.patches import (
    DenseDelta,
    LowRankDelta,
    ModuleOperation,
    PrivateRequests,
    Replace,
    RouterOperation,
    SparseDelta,
)
from kedit_core.testing.tiny import tiny_model
from kedit_peft import export_peft

DOWN = "model.layers.1.mlp.down_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"
FACT = {"prompt": "The capital of `France` is", "target_new": "Rome"}


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return tiny_model("gpt2")


def loaded_logits(family: str, folder: Path) -> torch.Tensor:
    peft = pytest.importorskip("peft")
    return logits(peft.PeftModel.from_pretrained(tiny_model(family), folder).merge_and_unload())


def test_the_files_are_in_the_portable_form(llama: Any, tmp_path: Path) -> None:
    patch = patch_of(llama, [low_rank(llama, DOWN, 2), low_rank(llama, UP, 5, seed=3)], requests=[FACT])
    report = export_peft(patch, tmp_path / "out", base_name="org/base")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 8
    assert config["rank_pattern"] == config["alpha_pattern"] == {} and not config["use_rslora"]
    assert config["target_modules"] == [DOWN.removesuffix(".weight"), UP.removesuffix(".weight")]
    assert config["base_model_name_or_path"] == "org/base" and config["fan_in_fan_out"] is False
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    left = tensors["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"]
    right = tensors["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"]
    assert len(tensors) == 4 and all(tensor.dtype == torch.float32 for tensor in tensors.values())
    operation = patch.operations[0]
    assert isinstance(operation, LowRankDelta)
    assert torch.equal(left[:, :2], operation.left) and torch.equal(right[:2], operation.right)
    assert not left[:, 2:].any() and not right[2:].any()
    assert report.errors == {DOWN: 0.0, UP: 0.0} and report.details["ranks"] == {DOWN: 2, UP: 5}
    readme = (tmp_path / "out" / "README.md").read_text()
    assert 'base_model: "org/base"' in readme and patch.id in readme and "`` The capital of `France` is ``" in readme


def test_the_same_patch_gives_the_same_bytes(llama: Any, tmp_path: Path) -> None:
    patch = patch_of(llama, [dense(llama, DOWN), low_rank(llama, UP)])
    for name in ("a", "b"):
        export_peft(patch, tmp_path / name, max_rank=4)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_several_patches_are_their_sum(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    place = DOWN if family == "llama" else "transformer.h.1.mlp.c_proj.weight"
    out, inner = shape_at(model, place)
    column = SparseDelta(place, "column", torch.tensor([1, 7]), randoms(out, 2, seed=8))
    patches = [
        patch_of(model, [low_rank(model, place, 2)]),
        patch_of(model, [low_rank(model, place, 1, seed=4), column]),
        patch_of(model, [SparseDelta(place, "row", torch.tensor([3]), randoms(1, inner, seed=9))]),
    ]
    report = export_peft(patches, tmp_path / "out")
    assert report.details["ranks"][place] == 6, "each column, row and rank once"
    wanted = patched_logits(family, patches)
    assert float((loaded_logits(family, tmp_path / "out") - wanted).abs().max()) <= 1e-5
    assert float((wanted - logits(model)).abs().max()) > 0.01


@pytest.mark.parametrize("family", ["gpt_neox", "phi3", "qwen3", "gemma3", "t5"])
def test_other_families_load_too(family: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = tiny_model(family)
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    places = [f"{name}.weight" for name in linear if not name.endswith(("lm_head", "embed_out"))]
    patch = patch_of(model, [low_rank(model, place, 1, seed=i) for i, place in enumerate(places)])
    export_peft(patch, tmp_path / "out")
    loaded = peft.PeftModel.from_pretrained(tiny_model(family), tmp_path / "out").merge_and_unload()
    weights = dict(loaded.named_parameters())
    from kedit_core import Editor

    editor = Editor(model, None, None)
    with editor.applied(patch, way="merged"):
        for name, weight in model.named_parameters():
            torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-6)


def test_ranks(llama: Any, tmp_path: Path) -> None:
    patch = patch_of(llama, [low_rank(llama, DOWN, 3)])
    assert export_peft(patch, tmp_path / "a", rank=5).details["rank"] == 5
    assert export_peft(patch, tmp_path / "b").details["rank"] == 8
    one = patch_of(llama, [low_rank(llama, DOWN, 1)])
    assert export_peft(one, tmp_path / "c").details["rank"] == 1
    with pytest.raises(InputError, match=r"down_proj.weight' has rank 3, which rank=2 cannot hold.*max_rank=2"):
        export_peft(patch, tmp_path / "d", rank=2)
    report = export_peft(patch, tmp_path / "e", max_rank=1, rank=1)
    exact = patch.operations[0].delta((32, 80), torch.float64)
    values = torch.linalg.svdvals(exact)
    assert report.errors[DOWN] == pytest.approx(float(values[1:].norm() / values.norm()), rel=1e-6)
    with pytest.raises(
        InputError, match=r"down_proj.weight' has a relative error of 0\.\d+, above the tolerance of 0\.1"
    ):
        export_peft(patch, tmp_path / "f", max_rank=1, tolerance=0.1)
    export_peft(patch, tmp_path / "g", max_rank=1, tolerance=1.0)
    assert not (tmp_path / "d").exists() and not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rank": 0}, "rank is 0; give a whole number from 1"),
        ({"rank": 10**12}, "from 1 to 65536"),
        ({"rank": True}, "rank is True"),
        ({"max_rank": 2.0}, "max_rank is 2.0"),
        ({"tolerance": "small"}, "tolerance is 'small'; give a number"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
        ({"dtype": "int8"}, "dtype is 'int8'; it is one of float32, bfloat16, float16"),
        ({"base_name": 3}, "base_name is 3"),
        ({"scale": 2}, "peft has no option 'scale'; it has rank, max_rank"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], told: str, llama: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told):
        export_peft(patch_of(llama, [low_rank(llama, DOWN)]), tmp_path / "out", **options)
    assert not any(tmp_path.iterdir())


def test_what_is_too_large_for_the_dtype_is_told(llama: Any, tmp_path: Path) -> None:
    huge = LowRankDelta(DOWN, randoms(32, 1, size=1e15), randoms(1, 80, size=1.0))
    with pytest.raises(InputError, match="too large for float16; export it as float32"):
        export_peft(patch_of(llama, [huge]), tmp_path / "out", dtype="float16")
    export_peft(patch_of(llama, [huge]), tmp_path / "out", dtype="bfloat16")


def refusals() -> list[Any]:
    llama, gpt2, qwen = tiny_model("llama"), tiny_model("gpt2"), tiny_model("qwen2")
    codebook = ModuleOperation(("model.layers.1.mlp",), "grace.codebook", tensors={"keys": torch.zeros(1, 2)})
    embed, norm = "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"
    bias = "transformer.h.1.mlp.c_proj.bias"
    down, values = torch.zeros(32, 80), llama.get_parameter(embed)
    return [
        (llama, [codebook], r"grace\.codebook at 'model\.layers\.1\.mlp', which runs code of its own"),
        (llama, [RouterOperation("ike.context")], r"ike\.context, which reads each prompt before the model"),
        (llama, [Replace(DOWN, down)], rf"the replace of '{DOWN}', which puts other values in the place"),
        (llama, [DenseDelta(embed, torch.zeros_like(values))], f"'{embed}': it is an embedding"),
        (llama, [DenseDelta(norm, torch.ones(32))], f"'{norm}': it is a bias or the weight of a norm"),
        (gpt2, [DenseDelta(bias, torch.ones(32))], f"'{bias}': it is a bias"),
        (qwen, [low_rank(qwen, embed)], f"'{embed}': it is tied to 'lm_head.weight'"),
        (llama, [DenseDelta(DOWN, down)], "changes no weight"),
    ]


@pytest.mark.parametrize("number", range(8))
def test_what_an_adapter_cannot_say_is_refused_with_place_and_reason(number: int, tmp_path: Path) -> None:
    model, operations, told = refusals()[number]
    with pytest.raises(InputError, match=told):
        export_peft(patch_of(model, operations), tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_fused_experts_and_both_layouts_are_refused(llama: Any, gpt2: Any, tmp_path: Path) -> None:
    described = patch_of(llama, [low_rank(llama, DOWN)]).base
    tensor = described.tensors[DOWN]
    experts = "model.layers.0.mlp.experts.down_proj"
    fused = evolve(described, tensors={experts: evolve(tensor, shape=(2, 4, 3), layout="as_stored", sha256={})})
    with pytest.raises(InputError, match=f"'{experts}': it holds fused experts"):
        export_peft(patch_of(llama, [DenseDelta(experts, torch.ones(2, 4, 3))], base=fused), tmp_path / "a")
    router = "model.layers.0.mlp.gate.weight"
    square = evolve(described, tensors={router: evolve(tensor, shape=(4, 3), layout="as_stored", sha256={})})
    with pytest.raises(InputError, match=f"'{router}': its layer is no Linear and no Conv1D"):
        export_peft(patch_of(llama, [DenseDelta(router, torch.ones(4, 3))], base=square), tmp_path / "b")
    both = evolve(described, tensors={DOWN: tensor, UP: evolve(tensor, shape=(80, 32), layout="in_out", sha256={})})
    operations = [low_rank(llama, DOWN), LowRankDelta(UP, randoms(32, 1), randoms(1, 80))]
    with pytest.raises(InputError, match=rf"'{UP}' is stored \[in, out\] and '{DOWN}' \[out, in\]"):
        export_peft(patch_of(llama, operations, base=both), tmp_path / "c")


def test_notes_say_who_cannot_take_it(llama: Any, gpt2: Any, tmp_path: Path) -> None:
    plain = export_peft(patch_of(llama, [low_rank(llama, DOWN, 1)]), tmp_path / "a").notes
    assert any("Text Generation Inference" in note for note in plain) and any("no name of its base" in n for n in plain)
    assert not any("vLLM" in note for note in plain)
    wide = export_peft(patch_of(llama, [low_rank(llama, DOWN, 20)]), tmp_path / "b", base_name="factworld:llama").notes
    assert any("--max-lora-rank 32" in note for note in wide) and any("only kedit knows" in note for note in wide)
    assert not any("larger than the weight" in note for note in plain)
    assert any("larger than the weight; serve a merged folder" in note for note in wide)
    conv = patch_of(gpt2, [low_rank(gpt2, "transformer.h.0.mlp.c_fc.weight")])
    assert any("vLLM puts no LoRA on GPT2LMHeadModel" in note for note in export_peft(conv, tmp_path / "c").notes)
    readme = (tmp_path / "c" / "README.md").read_text()
    assert "- note: vLLM puts no" in readme and "- note: the patch records no name" in readme
    assert ", 1 weight, " in readme
    config = json.loads((tmp_path / "c" / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is True
    head = export_peft(patch_of(llama, [low_rank(llama, "lm_head.weight", 1)]), tmp_path / "d", rank=600).notes
    assert any("output head lm_head" in note for note in head) and any("ranks up to 512" in note for note in head)


def test_private_facts_stay_out_of_the_readme(llama: Any, tmp_path: Path) -> None:
    many = [{"prompt": f"fact {i} is", "target_new": "x"} for i in range(12)]
    export_peft(patch_of(llama, [low_rank(llama, DOWN)], requests=many), tmp_path / "a")
    told = (tmp_path / "a" / "README.md").read_text()
    assert told.count("- ` fact") == 10 and "and 2 more" in told
    hidden = patch_of(llama, [low_rank(llama, DOWN)], requests=PrivateRequests.of(many))
    export_peft(hidden, tmp_path / "b")
    told = (tmp_path / "b" / "README.md").read_text()
    assert "12 facts that their author keeps private" in told and "fact 1" not in told


def test_the_command(llama: Any, tmp_path: Path) -> None:
    patch: EditPatch = patch_of(llama, [low_rank(llama, DOWN, 3)])
    patch.save(tmp_path / "p.safetensors")
    arguments = ["patch", "export", str(tmp_path / "p.safetensors"), "--to", "peft", "-o"]
    done = CliRunner().invoke(kedit, [*arguments, str(tmp_path / "out"), "-p", "max_rank=2", "--json"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert data["patches"] == [patch.id] and data["largest_error"] == data["errors"][DOWN] > 0.01
    assert data["details"]["ranks"] == {DOWN: 2} and (tmp_path / "out" / "adapter_config.json").is_file()
    done = CliRunner().invoke(kedit, [*arguments, str(tmp_path / "text"), "-p", "max_rank=2"])
    assert "largest relative error (Frobenius): " in done.stdout and "note: " in done.stderr
    done = CliRunner().invoke(kedit, [*arguments[:3], "--to", "onnx", "-o", str(tmp_path / "none")])
    assert done.exit_code == 2 and "has an export format called 'onnx'" in done.stderr
    done = CliRunner().invoke(kedit, ["patch", "export", "--formats"])
    assert done.exit_code == 0 and "peft (a folder)" in done.stdout and "-p max_rank=..." in done.stdout
