"""Encoders: the built-in n-grams, and sentence-transformers where it is installed."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import torch
from attrs import evolve
from ike_tools import FACTS, editor_on, read_before
from transformers import BertConfig, BertModel, BertTokenizerFast

from kedit_core import EditPatch
from kedit_core.errors import InputError, MissingExtraError, RequirementError
from kedit_core.files import replacing
from kedit_methods_memory.encoders import BuiltIn, Identity, RecordedEncoder, load_encoder
from kedit_methods_memory.ngrams import NGramEncoder

TEXTS = ["The capital of France is", "Straße nach Ōsaka, 3.5 km", "  the CAPITAL  of\nfrance is ", "日本の首都は"]


def test_vectors_are_unit_float32_and_the_same_alone_or_together() -> None:
    encoder = NGramEncoder()
    found = encoder.encode(TEXTS)
    assert found.dtype == torch.float32 and found.shape == (4, 1024)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))
    for text, row in zip(TEXTS, found, strict=True):
        assert torch.equal(encoder.encode([text])[0], row)
    assert not encoder.encode(["", " \n"]).any()


def test_vectors_never_change_from_version_to_version() -> None:
    # patches hold them: another value needs another id
    (vector,) = NGramEncoder(width=16).encode(["Ab abc"])
    counts = {" ab": 2, "ab ": 1, " ab ": 1, "abc": 1, "bc ": 1, " abc": 1, "abc ": 1, " abc ": 1}
    plain = torch.zeros(16, dtype=torch.float64)
    for gram, count in counts.items():  # no name in it: the first word's capital counts only before another name
        code = zlib.crc32(gram.encode())
        plain[(code >> 1) % 16] += (1 if code & 1 else -1) * count**0.5
    torch.testing.assert_close(vector, (plain / plain.norm()).float())
    assert NGramEncoder().id == "ngrams-3-5-1024"


def test_a_name_weighs_more_than_the_words_around_it() -> None:
    one, same_name, other_name = NGramEncoder().encode(
        ["Mira Taldon was born in the city of", "The birthplace of Mira Taldon is", "Oren Vash was born in the city of"]
    )
    assert one @ same_name > one @ other_name + 0.2


def test_a_path_is_no_setting(tmp_path: Path) -> None:
    for name in (str(tmp_path), "./encoder", "~/encoder"):
        with pytest.raises(InputError, match="--with encoder="):
            load_encoder(name)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    editor = editor_on(encoder="all-MiniLM-L6-v2")
    with pytest.raises(MissingExtraError, match=r"pip install 'kedit-methods-memory\[retrieval\]'"):
        editor.edit(FACTS[0], evaluate=False)
    monkeypatch.setattr("kedit_methods_memory.encoders.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="retrieval"):
        RecordedEncoder(Identity(id="all-MiniLM-L6-v2").to_dict(), None)


def test_another_version_of_the_built_in_is_not_taken_for_this_one() -> None:
    recorded = {**BuiltIn().identity.to_dict(), "id": "ngrams-3-5-512"}
    with pytest.raises(RequirementError, match="not the one the patch was made with"):
        RecordedEncoder(recorded, None).encode(["x"])


# ------------------------------------------------------------------ sentence-transformers
def encoder_folder(path: Path, seed: int = 0) -> Path:
    """A tiny random BERT with mean pooling, as sentence-transformers keeps them."""
    library = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.models")
    bert = path.parent / f"{path.name}-bert"
    bert.mkdir()
    letters = [chr(code) for code in range(33, 127)]
    (bert / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{each}" for each in letters)])
    )
    tokenizer = BertTokenizerFast.from_pretrained(bert)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
            initializer_range=0.3,
        )  # fmt: skip
        BertModel(config).save_pretrained(bert)
    tokenizer.save_pretrained(bert)
    word = modules.Transformer(str(bert), max_seq_length=64)
    pooling = modules.Pooling(24, pooling_mode="mean")
    library.SentenceTransformer(modules=[word, pooling], device="cpu").save(str(path))
    return path


def test_a_sentence_encoder_from_a_folder_routes_here_and_elsewhere(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path / "encoder")
    editor = editor_on("llama", k=4, resources={"encoder": folder})
    editor.options["demonstrations"] = editor_on().options["demonstrations"]
    patch = editor.edit(list(FACTS), evaluate=False).patch
    recorded = patch.operations[0].config["encoder"]
    assert recorded["pooling"] == "mean" and recorded["folder"] and recorded["id"] is None
    assert str(folder) not in json.dumps(patch.manifest())
    embeddings = patch.operations[0].tensors["memory.embeddings"]
    assert embeddings.shape == (3, 24)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    other = editor_on("llama")
    with pytest.raises(RequirementError, match="--with encoder=PATH"):
        other.apply(EditPatch.from_bytes(patch.to_bytes()))
    with pytest.raises(RequirementError, match="hashes to"):
        other.apply(patch, resources={"encoder": encoder_folder(tmp_path / "another", seed=1)})
    other.apply(patch, resources={"encoder": folder})
    for fact in FACTS:
        assert read_before(other, fact.prompt) == read_before(editor, fact.prompt)
        assert f"New Fact: {fact.prompt} {fact.target_new}\nPrompt: " in read_before(other, fact.prompt)


def test_the_newest_of_one_prompt_counts_beside_facts_of_other_lengths(tmp_path: Path) -> None:
    """Read in one batch, a text's vector depends on how long its neighbours are."""
    editor = editor_on("llama", method="ike_context", resources={"encoder": encoder_folder(tmp_path / "encoder")})
    long = evolve(FACTS[1], prompt="Alice, who lives in a very old house beside the sea, works in the city of")
    others = [evolve(each, prompt=f"{each.prompt} now", case_id="x") for each in FACTS]
    for count in range(4):
        editor.edit([FACTS[0], long, *others[:count]], evaluate=False)
        editor.edit(evolve(FACTS[0], target_new="Cairo", case_id="new"), evaluate=False)
        embeddings = editor.stack.patches[0].patch.operations[0].tensors["memory.embeddings"]
        assert torch.equal(embeddings[0], embeddings[-1])
        asked = [FACTS[0].prompt, long.prompt, f"{FACTS[0].prompt} said to be"]
        together = [route.context for route in editor.stack.route(asked)]
        assert together == [read_before(editor, prompt) for prompt in asked]
        assert together[0] == "New Fact: The capital of France is Cairo\nPrompt: "
        assert not any("France is Rome" in context for context in together)
        editor.restore()


def test_one_fact_without_a_threshold_needs_no_encoder_where_it_is_applied(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path / "encoder")
    editor = editor_on("llama", method="ike_context", resources={"encoder": folder})
    patch = editor.edit(FACTS[0], evaluate=False).patch
    assert patch.requires == ()
    other = editor_on("llama")
    other.apply(patch)
    assert read_before(other, "anything") == read_before(editor, "anything") != ""
    both = editor.edit(FACTS[1], evaluate=False).patch
    assert [need.role for need in both.requires] == ["encoder"]
    assert editor.drop(both, "#2").requires == ()
    strict = editor_on("llama", method="ike_context", resources={"encoder": folder}, tau=0.5)
    assert [need.role for need in strict.edit(FACTS[0], evaluate=False).patch.requires] == ["encoder"]


def test_vectors_of_demonstrations_are_kept_for_other_runs_and_never_mistaken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = encoder_folder(tmp_path / "encoder")
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
    given = editor_on().options["demonstrations"]

    def contexts(count: int) -> str:
        editor = editor_on(k=4, resources={"encoder": folder})
        editor.options["demonstrations"] = given[:count]
        editor.edit(FACTS[0], evaluate=False)
        return read_before(editor, FACTS[0].prompt)

    first = contexts(20)
    kept = list((tmp_path / "cache").rglob("demonstrations/*.safetensors"))
    assert len(kept) == 1 and contexts(20) == first
    contexts(19)
    assert len(list((tmp_path / "cache").rglob("demonstrations/*.safetensors"))) == 2
    with replacing(kept[0]) as stream:
        stream.write(b"damaged")
    assert contexts(20) == first
