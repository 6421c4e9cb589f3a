"""Every pitfall of finding a subject's tokens and joining a target, over tokenizers of every kind."""

from __future__ import annotations

import functools
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizer

from kedit_core.errors import InputError
from kedit_core.forward import TokenBoundary, collate, fill, slot
from kedit_core.testing.tiny import KINDS, tiny_tokenizer


@functools.cache
def boundary(kind: str) -> TokenBoundary:
    return TokenBoundary(tiny_tokenizer(kind.removesuffix("+trim")), kind == "t5") if "+" not in kind else _trimmed()


def _trimmed() -> TokenBoundary:
    """Offsets that leave out a token's leading space, as GPT-2's own tokenizer has them."""
    tokenizer = tiny_tokenizer("byte_bpe")
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return TokenBoundary(tokenizer)


ALL = (*KINDS, "byte_bpe+trim")
every_kind = pytest.mark.parametrize("kind", ALL)


def pieces(kind: str, ids: object) -> list[str]:
    return boundary(kind).tokenizer.convert_ids_to_tokens(list(ids))  # type: ignore[call-overload, no-any-return]


def bare(text: str) -> str:
    return text.replace("Ġ", "").replace("▁", "")


def subject_pieces(kind: str, text: str, subject: str) -> str:
    start = text.rindex(subject)
    encoded = boundary(kind).prompt(text)
    tokens = encoded.tokens_of((start, start + len(subject)))
    return bare("".join(pieces(kind, [encoded.ids[i] for i in tokens])))


# ------------------------------------------------------------------ the subject's tokens
@every_kind
@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("Port Lumen is the capital of", "Port Lumen"),
        ("The mother tongue of Oren Vash is", "Oren Vash"),
        ("The father of Mira Taldon", "Mira Taldon"),
        ("Eskel, unlike the other Eskel, is in", "Eskel"),
        ("The city of X is in", "X"),
    ],
    ids=["start", "middle", "end", "twice", "one-character"],
)
def test_subject_wherever_it_stands(kind: str, text: str, subject: str) -> None:
    if kind == "t5" and subject == "X":
        pytest.skip("not in this vocabulary")
    assert subject_pieces(kind, text, subject) in (bare(subject.replace(" ", "")), "<0x58>")


@every_kind
def test_a_subject_that_ends_in_punctuation_or_is_followed_by_it(kind: str) -> None:
    assert subject_pieces(kind, "The singer Lena Ostrava's brother", "Lena Ostrava").startswith("LenaOstrava")
    for text, subject in (("He wrote Who. It was", "Who."), ("Is it (Brink)?", "Brink")):
        start = text.index(subject)
        encoded = boundary(kind).prompt(text)
        last = encoded.tokens_of((start, start + len(subject)))[-1]
        assert encoded.offsets is not None
        assert encoded.offsets[last][0] < start + len(subject) <= encoded.offsets[last][1]


@every_kind
def test_one_too_far_with_bos_or_eos(kind: str) -> None:
    """Counting the tokens of pieces is off by one where BOS or EOS are added; offsets are not."""
    subject = "Mira Taldon"
    encoded = boundary(kind).prompt(subject)
    last = encoded.tokens_of((0, len(subject)))[-1]
    assert bare(pieces(kind, encoded.ids)[last]) != "</s>"
    assert last == len(encoded.ids) - (2 if kind == "t5" else 1)


@every_kind
def test_leading_space_gives_other_tokens_and_each_row_its_own_index(kind: str) -> None:
    template = "Therefore the teacher asked a question. {}"
    prompt, subject = "Port Lumen is in", "Port Lumen"
    plain = boundary(kind).prompt(prompt).tokens_of((0, len(subject)))
    at = slot(template)
    inside = boundary(kind).prompt(fill(template, prompt)).tokens_of((at, at + len(subject)))
    assert inside.stop > plain.stop
    assert subject_pieces(kind, fill(template, prompt), subject) == "PortLumen"


def test_merges_across_the_subjects_end() -> None:
    """Cut after the subject, "Brinks" may be other tokens than inside the text; offsets find the one that covers it."""
    for kind in KINDS:
        text = "the Brinks"
        encoded = boundary(kind).prompt(text)
        last = encoded.tokens_of((4, 9))[-1]
        assert encoded.offsets is not None
        start, end = encoded.offsets[last]
        assert start < 9 <= end


def test_characters_that_are_several_tokens() -> None:
    for kind in ("byte_bpe", "byte_bpe_bos", "qwen", "sentencepiece_bos"):
        encoded = boundary(kind).prompt("日本 is")
        assert encoded.offsets is not None
        tokens = encoded.tokens_of((0, 1))
        assert [encoded.offsets[i] for i in tokens] == [(0, 1)] * 3
        assert not any(encoded.blank[i] for i in tokens)  # nor the space mark that SentencePiece puts in front
        assert encoded.tokens_of((0, 2)) == range(tokens.start, tokens.start + 6)


@every_kind
def test_a_span_with_white_space_at_its_ends(kind: str) -> None:
    text = "See Port Lumen  there"
    tight = boundary(kind).prompt(text).tokens_of((4, 14))
    loose = boundary(kind).prompt(text).tokens_of((3, 15))
    assert set(tight) <= set(loose)


@every_kind
def test_spans_that_are_refused(kind: str) -> None:
    encoded = boundary(kind).prompt("Port Lumen")
    for span in ((0, 0), (3, 2), (-1, 3), (0, 11)):
        with pytest.raises(InputError, match="does not lie within"):
            encoded.tokens_of(span)


def test_white_space_without_a_token_is_refused() -> None:
    with pytest.raises(InputError, match="no token stands for"):
        boundary("t5").prompt("Port  Lumen").tokens_of((5, 6))


_text = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=24) | st.text(
    "aé ’.'Port Lumen日", min_size=1, max_size=24
)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), text=_text, kind=st.sampled_from(ALL))
def test_the_last_token_overlaps_the_last_character(data: st.DataObject, text: str, kind: str) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    try:
        encoded = boundary(kind).prompt(text)
        tokens = encoded.tokens_of((start, end))
    except InputError:
        return  # a text, or a stretch of white space, that has no token
    assert encoded.offsets is not None
    spans = [encoded.offsets[i] for i in tokens]
    covering = [i for i, (a, b) in enumerate(encoded.offsets) if a < end <= b]
    if covering:
        assert tokens[-1] == covering[-1]
    assert any(a < end and b > start for a, b in spans)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(_text, min_size=1, max_size=4), kind=st.sampled_from(ALL))
def test_padding_side_does_not_move_tokens(texts: list[str], kind: str) -> None:
    rows = []
    for text in texts:
        try:
            rows.append(boundary(kind).prompt(text).ids)
        except InputError:
            continue
    if not rows:
        return
    last = [len(row) - 1 for row in rows]
    for side in ("left", "right"):
        batch = collate(rows, boundary(kind).pad_id, side)  # type: ignore[arg-type]
        columns = batch.columns(last)
        for i, row in enumerate(rows):
            assert batch.input_ids[i][batch.attention_mask[i].bool()].tolist() == list(row)
            assert int(batch.input_ids[i, columns[i]]) == row[-1]
            assert int(batch.position_ids[i, columns[i]]) == len(row) - 1


# ------------------------------------------------------------------ prompts and targets
@every_kind
def test_a_prompt_has_the_forward_passes_special_tokens(kind: str) -> None:
    first, last = (pieces(kind, boundary(kind).prompt("Port Lumen").ids)[i] for i in (0, -1))
    assert (first in ("<s>", "<|begin_of_text|>")) == (kind in ("sentencepiece_bos", "byte_bpe_bos"))
    assert (last == "</s>") == (kind == "t5")


def test_no_end_of_sequence_between_prompt_and_target() -> None:
    """A decoder-only model whose tokenizer appends EOS still goes on writing after its prompt."""
    decoder_only = TokenBoundary(tiny_tokenizer("t5"), encoder_decoder=False)
    pair = decoder_only.pair("The capital is", "Port Lumen")
    names = decoder_only.tokenizer.convert_ids_to_tokens([*pair.prompt_ids, *pair.target_ids])
    assert "</s>" not in names
    assert decoder_only.decode(pair.prompt_ids + pair.target_ids) == "The capital is Port Lumen"


def test_a_special_token_in_the_text_is_text() -> None:
    ids = boundary("byte_bpe").prompt("<|endoftext|>").ids
    assert pieces("byte_bpe", ids) == ["<|endoftext|>"]
    assert pieces("byte_bpe", boundary("byte_bpe").prompt("Port<|endoftext|>").ids)[-1] == "<|endoftext|>"


@every_kind
@pytest.mark.parametrize("target", ["Port Lumen", " Port Lumen", "  Port Lumen "])
def test_a_target_with_and_without_its_space_is_the_same(kind: str, target: str) -> None:
    pair = boundary(kind).pair("The capital of Arvania is", target)
    assert pair == boundary(kind).pair("The capital of Arvania is", "Port Lumen")
    mark = "▁" if kind in ("t5", "sentencepiece_bos") else "Ġ"
    assert pieces(kind, pair.target_ids)[0] == mark + "Port"


@pytest.mark.parametrize("kind", [k for k in ALL if k != "t5"])
@pytest.mark.parametrize(
    ("prompt", "target", "whole"),
    [
        ("The capital is", "Port Lumen", "The capital is Port Lumen"),
        ("The capital is", "!", "The capital is !"),
        ("The capital is", "'s", "The capital is 's"),
        ("日本の首都は", "東京", "日本の首都は 東京"),
        ("Line\n", "Port", "Line\nPort"),
    ],
)
def test_joined_ids_read_as_the_joined_text(kind: str, prompt: str, target: str, whole: str) -> None:
    pair = boundary(kind).pair(prompt, target)
    assert pair.prompt_ids == boundary(kind).prompt(prompt).ids
    assert boundary(kind).decode(pair.prompt_ids + pair.target_ids) == whole


@pytest.mark.parametrize("kind", ["byte_bpe", "byte_bpe_bos", "qwen"])
def test_a_prompt_that_ends_in_a_space_gets_no_second_one(kind: str) -> None:
    pair = boundary(kind).pair("The capital is ", "Port Lumen")
    assert pair.prompt_ids == boundary(kind).prompt("The capital is ").ids
    assert boundary(kind).decode(pair.prompt_ids + pair.target_ids) == "The capital is Port Lumen"


def test_fallback_where_the_prompt_is_not_a_prefix() -> None:
    """SentencePiece merges the prompt's trailing space into the target: the target alone, without a lone space."""
    pair = boundary("sentencepiece_bos").pair("The capital is ", "Port Lumen")
    assert pieces("sentencepiece_bos", pair.prompt_ids)[-1] == "▁"
    assert pieces("sentencepiece_bos", pair.target_ids) == ["▁Port", "▁Lumen"]


def test_the_lone_space_piece_is_dropped_in_the_fallback() -> None:
    assert boundary("sentencepiece_bos")._alone(" Port", drop_blank=True) == boundary("sentencepiece_bos")._alone(
        "Port", drop_blank=True
    )


@settings(max_examples=40, deadline=None)
@given(prompt=_text, target=_text, kind=st.sampled_from([k for k in ALL if k.startswith(("byte", "qwen"))]))
def test_byte_level_pairs_lose_nothing(prompt: str, target: str, kind: str) -> None:
    if not target.strip():
        with pytest.raises(InputError, match="target is empty"):
            boundary(kind).pair(prompt, target)
        return
    if "<|" in prompt or "<|" in target:
        return
    pair = boundary(kind).pair(prompt, target)
    whole = prompt + ("" if prompt[-1].isspace() else " ") + target.strip()
    read = boundary(kind).decode(pair.prompt_ids + pair.target_ids)
    assert unicodedata.normalize("NFC", read) == unicodedata.normalize("NFC", whole)


def test_an_encoder_decoders_pair() -> None:
    pair = boundary("t5").pair("The capital of Arvania is", "Port Lumen")
    assert pieces("t5", pair.prompt_ids)[-1] == "</s>"
    assert pieces("t5", pair.target_ids) == ["▁Port", "▁Lumen"]


@every_kind
def test_empty_texts_are_refused(kind: str) -> None:
    with pytest.raises(InputError, match="prompt is empty"):
        boundary(kind).prompt("")
    with pytest.raises(InputError, match="target is empty"):
        boundary(kind).pair("The", "  ")
    with pytest.raises(InputError, match="prompt is empty"):
        boundary(kind).pair("", "Port")


@every_kind
def test_half_a_character_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match=r"'The \\ud800' has half a character"):
        boundary(kind).prompt("The \ud800")


def test_text_without_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="no token"):
        boundary("t5").prompt("  ")


@every_kind
def test_continuations_keep_their_leading_space(kind: str) -> None:
    pair = boundary(kind).pair("The capital is", "Port Lumen")
    expected = "Port Lumen" if kind == "t5" else " Port Lumen"
    assert boundary(kind).continuation(pair.prompt_ids, pair.target_ids) == expected


def test_pad_id() -> None:
    assert boundary("qwen").pad_id == boundary("qwen").tokenizer.pad_token_id
    assert boundary("byte_bpe").pad_id == boundary("byte_bpe").tokenizer.eos_token_id
    tokenizer = tiny_tokenizer("byte_bpe")
    tokenizer.eos_token = None
    assert TokenBoundary(tokenizer).pad_id == 0


# ------------------------------------------------------------------ slow tokenizers
class WordTokenizer(PreTrainedTokenizer):
    """A slow tokenizer: words, BOS in front, EOS behind, no offsets."""

    def __init__(self, **more: object) -> None:
        self.words = ["<s>", "</s>", "<unk>", "The", "capital", "is", "Port", "Lumen"]
        super().__init__(bos_token="<s>", eos_token="</s>", unk_token="<unk>", **more)

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def _tokenize(self, text: str, **_: object) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        return self.words.index(token) if token in self.words else 2

    def _convert_id_to_token(self, index: int) -> str:
        return self.words[index]

    def build_inputs_with_special_tokens(self, a: list[int], b: list[int] | None = None) -> list[int]:
        return [0, *a, 1]

    def get_special_tokens_mask(
        self, a: list[int], b: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        return [1, *([0] * len(a)), 1]


def test_a_slow_tokenizer_joins_but_finds_no_subject() -> None:
    slow = TokenBoundary(WordTokenizer())
    pair = slow.pair("The capital is", "Port Lumen")
    assert pair.prompt_ids == (0, 3, 4, 5)
    assert pair.target_ids == (6, 7)
    with pytest.raises(InputError, match="fast tokenizer"):
        slow.subject_tokens("The capital is", (4, 11))


# ------------------------------------------------------------------ templates
def test_templates_have_exactly_one_slot() -> None:
    assert fill("He said {x}. {}", "a {} b") == "He said {x}. a {} b"
    assert slot("ab {}") == 3
    for template in ("no slot", "{} and {}", "{0}"):
        with pytest.raises(InputError, match="slots"):
            fill(template, "x")


@settings(max_examples=50, deadline=None)
@given(before=st.text(max_size=12), after=st.text(max_size=12), text=_text)
def test_filled_text_is_found_at_the_slot(before: str, after: str, text: str) -> None:
    template = before + "{}" + after
    if template.count("{}") != 1:
        return
    filled = fill(template, text)
    assert filled[slot(template) :][: len(text)] == text
    assert filled == before + text + after
