"""The tiny models and tokenizers other tests stand on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from kedit_core.testing.tiny import FAMILIES, KINDS, tiny, tiny_model, tiny_tokenizer

TEXT = "Mira Taldon's émigré friend wrote 1874 books, in Eskel"


@pytest.mark.parametrize("family", FAMILIES)
def test_models_are_repeatable_and_leave_the_random_state_alone(family: str) -> None:
    state = torch.get_rng_state()
    one, two, other = tiny_model(family), tiny_model(family), tiny_model(family, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    weights = [dict(model.named_parameters()) for model in (one, two, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not any(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    assert not any(module.training for module in one.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_models_answer_with_their_tokenizer(family: str) -> None:
    model, tokenizer = tiny(family)
    inputs = {"input_ids": tokenizer(TEXT, return_tensors="pt").input_ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.zeros(1, 3, dtype=torch.long)
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape[-1] == len(tokenizer)
    assert logits.std() > 0.5, "answers are nearly uniform, so comparisons would show little"
    assert not torch.allclose(logits[0, 0], logits[0, -1])


def test_sizes_differ_so_that_swapped_axes_show() -> None:
    model = tiny_model("llama")
    assert model.model.layers[0].mlp.down_proj.weight.shape == (32, 80)
    assert model.model.layers[0].self_attn.k_proj.weight.shape == (16, 32)
    assert len({len(tiny_model("t5").encoder.block), len(tiny_model("t5").decoder.block)}) == 2


def test_settings_replace_the_tiny_ones() -> None:
    model = tiny_model("mistral", dtype=torch.bfloat16, sliding_window=5, num_hidden_layers=2)
    assert (model.config.sliding_window, len(model.model.layers), model.dtype) == (5, 2, torch.bfloat16)


def test_gpt_neo_has_local_and_global_layers() -> None:
    assert tiny_model("gpt_neo").config.attention_layers == ["global", "local", "global", "local"]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(KeyError, match="gpt5"):
        tiny_model("gpt5")
    with pytest.raises(KeyError, match="wordpiece"):
        tiny_tokenizer("wordpiece")


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_read_back_what_they_wrote(kind: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(kind)
    ids = tokenizer(TEXT).input_ids
    assert tiny_tokenizer(kind)(TEXT).input_ids == ids
    text = TEXT.replace("é", "") if kind == "t5" else TEXT
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXT).input_ids == ids


@pytest.mark.parametrize(
    ("kind", "first", "last"),
    [
        ("byte_bpe", None, None),
        ("sentencepiece_bos", "<s>", None),
        ("byte_bpe_bos", "<|begin_of_text|>", None),
        ("qwen", None, None),
        ("t5", None, "</s>"),
    ],
)
def test_specials_are_where_the_kind_has_them(kind: str, first: str | None, last: str | None) -> None:
    tokenizer = tiny_tokenizer(kind)
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(TEXT).input_ids)
    specials = set(tokenizer.all_special_tokens)
    assert pieces[0] == first if first else pieces[0] not in specials
    assert pieces[-1] == last if last else pieces[-1] not in specials
    assert not specials & set(pieces[1:-1]) - {"<unk>"}


def test_a_leading_space_makes_other_tokens() -> None:
    for kind in ("byte_bpe", "byte_bpe_bos", "qwen"):
        tokenizer = tiny_tokenizer(kind)
        assert len(tokenizer("Oren", add_special_tokens=False).input_ids) > 1
        assert len(tokenizer(" Oren", add_special_tokens=False).input_ids) == 1


def test_digits_are_split_as_the_kind_does() -> None:
    for kind, count in (("qwen", 4), ("byte_bpe_bos", 4)):
        assert len(tiny_tokenizer(kind)("1874", add_special_tokens=False).input_ids) == count
    assert len(tiny_tokenizer("byte_bpe")(" 1902", add_special_tokens=False).input_ids) < 5
