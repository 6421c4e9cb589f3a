"""Which projections get an adapter, in every family kedit knows; and what is said when one cannot be found."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from kedit_core import Editor, EditRequest
from kedit_core.errors import InputError
from kedit_core.testing.tiny import FAMILIES, tiny
from kedit_methods_finetune.hparams import LoraHyperParams
from kedit_methods_finetune.lora.targets import find_targets

SEPARATE = ("q_proj", "v_proj")
ATTENTION_INPUTS = {
    "gpt2": ("attn.c_attn",),
    "gptj": tuple(f"attn.{name}" for name in SEPARATE),
    "gpt_neo": tuple(f"attn.attention.{name}" for name in SEPARATE),
    "gpt_neox": ("attention.query_key_value",),
    "phi3": ("self_attn.qkv_proj",),
    "t5": ("layer.0.SelfAttention.q", "layer.0.SelfAttention.v"),
    "t5_gated": ("layer.0.SelfAttention.q", "layer.0.SelfAttention.v"),
}
FACT = EditRequest(prompt="The capital of France is", target_new="Rome")


def found(model: nn.Module, tokenizer: Any, **hparams: Any) -> list[str]:
    view = Editor(model, tokenizer).adapter
    return [target.place for target in find_targets(view, LoraHyperParams(**hparams))]


def on(family: str, **hparams: Any) -> list[str]:
    return found(*tiny(family), **hparams)


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_and_values_are_found_in_every_block(family: str) -> None:
    model, tokenizer = tiny(family)
    view = Editor(model, tokenizer).adapter
    inside = ATTENTION_INPUTS.get(family, tuple(f"self_attn.{name}" for name in SEPARATE))
    expected = {f"{view.name_of(view.block(i))}.{n}.weight" for i in range(view.num_layers) for n in inside}
    places = found(model, tokenizer)
    assert set(places) == expected
    assert len(places) == len(expected)


def test_sizes_are_those_of_the_weight_in_out_in_terms() -> None:
    model, tokenizer = tiny("gpt2")
    targets = find_targets(Editor(model, tokenizer).adapter, LoraHyperParams(targets=("q", "mlp_in"), layers=(1,)))
    assert [(t.place.split(".", 3)[3], t.out, t.width) for t in targets] == [
        ("attn.c_attn.weight", 96, 32),
        ("mlp.c_fc.weight", 80, 32),
    ]


def test_roles_and_layers() -> None:
    assert on("llama", targets=("mlp_in", "mlp_out"), layers=(2,)) == [
        f"model.layers.2.mlp.{name}_proj.weight" for name in ("gate", "up", "down")
    ]
    assert on("llama", targets=("k", "attn_out"), layers=(0,)) == [
        f"model.layers.0.self_attn.{name}_proj.weight" for name in ("k", "o")
    ]
    assert on("gptj", targets=("mlp_in", "mlp_out"), layers=(1,)) == [
        f"transformer.h.1.mlp.fc_{name}.weight" for name in ("in", "out")
    ]


def test_names_are_ends_in_whole_parts() -> None:
    assert on("gpt2", targets=("c_proj",), layers=(0,)) == [
        "transformer.h.0.attn.c_proj.weight",
        "transformer.h.0.mlp.c_proj.weight",
    ]
    assert on("gpt2", targets=("mlp.c_proj",), layers=(0, 2)) == [
        f"transformer.h.{i}.mlp.c_proj.weight" for i in (0, 2)
    ]
    assert on("llama", targets=("layers.1.self_attn.q_proj",)) == ["model.layers.1.self_attn.q_proj.weight"]
    with pytest.raises(InputError, match="'proj', which is neither"):
        on("gpt2", targets=("proj",))


def test_names_reach_the_decoder_of_an_encoder_decoder() -> None:
    """Roles are the encoder's; a name is found in the decoder too, unless blocks are chosen."""
    places = on("t5", targets=("EncDecAttention.v",))
    assert places == [f"decoder.block.{i}.layer.1.EncDecAttention.v.weight" for i in range(3)]
    assert len(on("t5", targets=("SelfAttention.q",))) == 4 + 3
    assert len(on("t5", targets=("SelfAttention.q",), layers=(0,))) == 1


def test_a_projection_of_unknown_name_is_taken_when_it_is_the_only_one() -> None:
    model, tokenizer = tiny("gpt_neox")
    for layer in model.gpt_neox.layers:
        attention = layer.attention
        inside = attention._modules
        attention._modules = {("mixing" if name == "query_key_value" else name): m for name, m in inside.items()}
    assert found(model, tokenizer, layers=(0,)) == ["gpt_neox.layers.0.attention.mixing.weight"]


def test_where_it_cannot_be_told_the_names_are_listed() -> None:
    model, tokenizer = tiny("llama")
    attention = model.model.layers[1].self_attn
    attention._modules = {
        (f"part_{name[0]}" if name != "o_proj" else name): m for name, m in attention._modules.items()
    }
    with pytest.raises(InputError, match=r"part_q, part_k, part_v\); name modules instead, with -p targets="):
        found(model, tokenizer)


def test_a_layer_that_is_not_there_is_refused_before_any_work() -> None:
    model, tokenizer = tiny("gpt2")
    editor = Editor(model, tokenizer, "lora", {"layers": [1, 3]})
    with pytest.raises(InputError, match="block 3, and this model has blocks 0 to 2"):
        editor.edit([FACT], evaluate=False)


def test_a_weight_shared_with_another_module_is_refused() -> None:
    model, tokenizer = tiny("llama")
    attention = model.model.layers
    attention[2].self_attn.q_proj.weight = attention[0].self_attn.q_proj.weight
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.q_proj\.weight is also model\.layers\.2"):
        found(model, tokenizer)
