"""The exporter ``gguf-lora``: read back with gguf's own reader, rows put back as transformers has them."""

from __future__ import annotations

import builtins
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from peft_tools import dense, low_rank, patch_of, randoms
from torch import Tensor, nn

from kedit_core import EditPatch
from kedit_core.errors import InputError, MissingExtraError
from kedit_core.patches import LowRankDelta
from kedit_core.testing.tiny import tiny_model
from kedit_peft import export_gguf
from kedit_peft.llama_cpp import heads_of

gguf = pytest.importorskip("gguf")
HEADS, KV_HEADS = 4, 2


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fields, and tensors as [rows, columns] in float32."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {}
    for each in reader.tensors:
        values = gguf.quants.dequantize(each.data, each.tensor_type)
        tensors[each.name] = torch.from_numpy(values.copy()).reshape(list(reversed([int(n) for n in each.shape])))
    return fields, tensors


def products(path: Path) -> dict[str, Tensor]:
    """alpha / r times B A of each weight, by its name in GGUF."""
    fields, tensors = read(path)
    names = {name.removesuffix(".lora_a") for name in tensors if name.endswith(".lora_a")}
    assert len(tensors) == 2 * len(names)
    scale = {name: fields["adapter.lora.alpha"] / tensors[f"{name}.lora_a"].shape[0] for name in names}
    return {name: scale[name] * tensors[f"{name}.lora_b"] @ tensors[f"{name}.lora_a"] for name in names}


def halves(rows: Tensor, heads: int) -> Tensor:
    """Llama's rotary rows from pairs of neighbours, row by row, to halves of each head."""
    size = rows.shape[0] // heads
    put_back = torch.empty_like(rows)
    for head in range(heads):
        for i in range(size // 2):
            for half in (0, 1):
                put_back[head * size + half * (size // 2) + i] = rows[head * size + 2 * i + half]
    return put_back


def by_head(rows: Tensor, heads: int) -> Tensor:
    """GPT-NeoX's fused rows from q of all heads, k of all, v of all, to q, k, v of each head."""
    size = rows.shape[0] // heads // 3
    put_back = torch.empty_like(rows)
    for head in range(heads):
        for part in range(3):
            start = part * heads * size + head * size
            put_back[(head * 3 + part) * size : (head * 3 + part + 1) * size] = rows[start : start + size]
    return put_back


LLAMA = {
    "self_attn.q_proj": ("attn_q", lambda rows: halves(rows, HEADS)),
    "self_attn.k_proj": ("attn_k", lambda rows: halves(rows, KV_HEADS)),
    "self_attn.v_proj": ("attn_v", None),
    "self_attn.o_proj": ("attn_output", None),
    "mlp.gate_proj": ("ffn_gate", None),
    "mlp.up_proj": ("ffn_up", None),
    "mlp.down_proj": ("ffn_down", None),
}
PLAIN = {module: (name, None) for module, (name, _) in LLAMA.items()}
PHI = {
    "self_attn.qkv_proj": ("attn_qkv", None),
    "mlp.gate_up_proj": ("ffn_up", None),
    "mlp.down_proj": ("ffn_down", None),
}
GPT2 = {"attn.c_attn": ("attn_qkv", None), "attn.c_proj": ("attn_output", None), "mlp.c_proj": ("ffn_down", None)}
NEOX = {
    "attention.query_key_value": ("attn_qkv", lambda rows: by_head(rows, HEADS)),
    "attention.dense": ("attn_output", None),
    "mlp.dense_4h_to_h": ("ffn_down", None),
}
NAMES: dict[str, tuple[str, str, Mapping[str, Any]]] = {
    "llama": ("llama", "model.layers", LLAMA),
    "mistral": ("llama", "model.layers", LLAMA),
    "qwen2": ("qwen2", "model.layers", PLAIN),
    "qwen3": ("qwen3", "model.layers", PLAIN),
    "gemma2": ("gemma2", "model.layers", PLAIN),
    "gemma3": ("gemma3", "model.layers", PLAIN),
    "phi3": ("phi3", "model.layers", PHI),
    "gpt2": ("gpt2", "transformer.h", GPT2),
    "gpt_neox": ("gptneox", "gpt_neox.layers", NEOX),
}


@pytest.mark.parametrize("family", list(NAMES))
def test_what_is_read_back_is_the_change(family: str, tmp_path: Path) -> None:
    architecture, blocks, modules = NAMES[family]
    model = tiny_model(family)
    model.config.save_pretrained(tmp_path)
    places = {f"{blocks}.{layer}.{module}.weight": (layer, module) for layer in (0, 2) for module in modules}
    patch = patch_of(model, [low_rank(model, place, 1 + i % 3, seed=i) for i, place in enumerate(places)])
    report = export_gguf(patch, tmp_path / "lora.gguf", base=tmp_path)
    fields, _ = read(tmp_path / "lora.gguf")
    assert fields["general.architecture"] == architecture == report.details["architecture"]
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    assert fields["adapter.lora.alpha"] == report.details["rank"] == 3
    found = products(tmp_path / "lora.gguf")
    assert len(found) == len(places)
    for operation in patch.operations:
        assert isinstance(operation, LowRankDelta)
        layer, module = places[operation.place]
        name, put_back = modules[module]
        rows = found[f"blk.{layer}.{name}.weight"]
        torch.testing.assert_close(put_back(rows) if put_back else rows, operation.left @ operation.right)
        assert put_back is None or not torch.allclose(rows, operation.left @ operation.right)


@pytest.mark.parametrize(("dtype", "kind", "unit"), [("float16", "F16", 2.0**-11), ("bfloat16", "BF16", 2.0**-8)])
def test_half_precision(dtype: str, kind: str, unit: float, tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    place = "transformer.h.1.mlp.c_proj.weight"
    patch = patch_of(model, [low_rank(model, place, 2), dense(model, place)])
    report = export_gguf(patch, tmp_path / "lora.gguf", dtype=dtype)
    reader = gguf.GGUFReader(tmp_path / "lora.gguf")
    assert {each.tensor_type.name for each in reader.tensors} == {kind}
    exact = sum(operation.delta((32, 80), torch.float64) for operation in patch.operations)  # type: ignore[union-attr]
    missing = float((products(tmp_path / "lora.gguf")["blk.1.ffn_down.weight"].double() - exact).norm() / exact.norm())
    assert 0 < missing < 2 * unit
    assert report.errors[place] == pytest.approx(missing, rel=1e-3)


def llama_patch(module: str = "mlp.down_proj") -> tuple[nn.Module, EditPatch]:
    model = tiny_model("llama")
    return model, patch_of(model, [low_rank(model, f"model.layers.1.{module}.weight")])


def test_the_same_patch_gives_the_same_bytes(tmp_path: Path) -> None:
    _, patch = llama_patch()
    for name in ("a", "b"):
        export_gguf(patch, tmp_path / name, rank=4)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_llama_cpp_cannot_take_is_refused(tmp_path: Path) -> None:
    opt = tiny_model("opt")
    patch = patch_of(opt, [low_rank(opt, "model.decoder.layers.0.fc2.weight")])
    with pytest.raises(InputError, match=r"OPTForCausalLM cannot be exported for llama\.cpp; known are LlamaFor"):
        export_gguf(patch, tmp_path / "a")
    model, patch = llama_patch("self_attn.q_proj")
    with pytest.raises(InputError, match=r"number of heads; say where the model's config.json is, with base="):
        export_gguf(patch, tmp_path / "a")
    for number, (config, told) in enumerate(
        (
            ({"num_attention_heads": 5}, "32 rows are no 5 heads"),
            ({"num_attention_heads": 0}, "32 rows are no 0 heads"),
            ({"num_attention_heads": "4"}, "has no num_attention_heads"),
            ([], "is not a JSON object"),
        )
    ):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=told):
            export_gguf(patch, tmp_path / "a", base=tmp_path / str(number))
    for base, told in ((3, "base is 3"), ("no such model", "is no folder with a config.json, and none could be had")):
        with pytest.raises(InputError, match=told):
            export_gguf(patch, tmp_path / "a", base=base)
    model, patch = llama_patch()
    odd = patch_of(
        model,
        [LowRankDelta("model.layers.1.mlp.odd.weight", randoms(32, 1), randoms(1, 80))],
        base=type(patch.base)(
            architecture="LlamaForCausalLM",
            tensors={"model.layers.1.mlp.odd.weight": patch.base.tensors["model.layers.1.mlp.down_proj.weight"]},
        ),
    )
    with pytest.raises(InputError, match=r"GGUF has no name for 'model\.layers\.1\.mlp\.odd' of llama"):
        export_gguf(odd, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__
    monkeypatch.setattr("kedit_core.extras.import_module", lambda name: plain("no_such_library"))
    with pytest.raises(MissingExtraError, match=r"export to gguf-lora needs gguf.*kedit-peft\[gguf\]"):
        export_gguf(llama_patch()[1], tmp_path / "a")


def test_heads_come_from_the_model_that_the_patch_names(tmp_path: Path) -> None:
    heads = heads_of("factworld:llama")
    assert (heads("num_attention_heads"), heads("num_key_value_heads")) == (4, 4)
    _, patch = llama_patch("self_attn.q_proj")
    named = evolve(patch, base=evolve(patch.base, name="factworld:llama"))
    export_gguf(named, tmp_path / "a")
    place, left, right = "model.layers.1.self_attn.q_proj.weight", *patch.operations[0].tensors.values()
    assert patch.places == (place,)
    torch.testing.assert_close(halves(products(tmp_path / "a")["blk.1.attn_q.weight"], HEADS), left @ right)
