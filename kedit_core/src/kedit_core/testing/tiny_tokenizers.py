"""Small tokenizers of the kinds that matter, trained in memory in a few milliseconds.

They differ where token boundaries go wrong in practice: whether a BOS is put in front or an EOS behind, whether a
leading space belongs to the word, whether digits are split, what a character outside of the alphabet becomes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

# Written for this module; every fact is made up.
_TEXT = """\
The capital of Arvania is Port Lumen. Port Lumen is the largest city in Arvania, and its harbour is old.
Mira Taldon was born in the city of Eskel. Mira Taldon works as a violinist and plays the violin every day.
The mother tongue of Oren Vash is Haltic. Oren Vash lives in Port Lumen, where people speak Haltic.
The river Sorrel flows through Eskel, then through the town of Brink, and into the northern sea.
Who wrote the book The Glass Orchard? It was written by Lena Ostrava in 1874, when she was 31 years old.
The Glass Orchard's author is Lena Ostrava. Her brother's name is Tomas; their father was a baker.
In 1902 the company Norrvale was founded by Edda Quill. The headquarters of Norrvale are in Brink.
Edda Quill is a citizen of Arvania. She was the chief of Norrvale from 1902 to 1937, for 35 years.
What sport does Jonas Reek play? Jonas Reek plays tennis; his sister plays football for the city of Eskel.
The language of Haltia is Haltic, the currency of Haltia is the crown, and the capital of Haltia is Brink.
Therefore the teacher asked a question: "Where is the tower of Eskel?" Nobody knew the answer, because it had fallen.
I think that you are right, and I know that they were wrong about the painter, the singer and the doctor.
"""

_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3_PATTERN = _GPT2_PATTERN.replace(r" ?\p{N}+", r"\p{N}{1,3}")
_QWEN_PATTERN = _GPT2_PATTERN.replace(r" ?\p{N}+", r"\p{N}")

_SPACE = "▁"


def _byte_level(pattern: str, specials: tuple[str, ...], normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(
        _TEXT.splitlines(),
        trainers.BpeTrainer(
            vocab_size=420,
            min_frequency=2,
            show_progress=False,
            special_tokens=list(specials),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return tokenizer


def _with_bos(tokenizer: Tokenizer, bos: str, *before: Any) -> None:
    template = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    tokenizer.post_processor = processors.Sequence([*before, template]) if before else template


def _byte_bpe() -> PreTrainedTokenizerFast:
    tokenizer = _byte_level(_GPT2_PATTERN, ("<|endoftext|>",))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    )


def _byte_bpe_bos() -> PreTrainedTokenizerFast:
    tokenizer = _byte_level(_LLAMA3_PATTERN, ("<|begin_of_text|>", "<|end_of_text|>"))
    _with_bos(tokenizer, "<|begin_of_text|>", processors.ByteLevel(trim_offsets=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"
    )


def _qwen() -> PreTrainedTokenizerFast:
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer = _byte_level(_QWEN_PATTERN, specials, normalizers.NFC())
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def _learn_pieces(vocab_size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """SentencePiece-like pieces with ``▁`` for a space, in the order learned, and the merges that make them."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    trained.train_from_iterator(
        _TEXT.splitlines(), trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=2, show_progress=False)
    )
    learned = json.loads(trained.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    return pieces, [(left, right) for left, right in learned["merges"]]


def _sentencepiece_bos() -> PreTrainedTokenizerFast:
    learned, merges = _learn_pieces(220)
    # As SentencePiece lays a vocabulary out: specials, one piece for each byte, then what was learned.
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in pieces[:3]])
    _with_bos(tokenizer, "<s>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _t5() -> PreTrainedTokenizerFast:
    specials = ["<pad>", "</s>", "<unk>", "<extra_id_0>", "<extra_id_1>"]
    learned, _ = _learn_pieces(220)
    # Log frequencies instead of the unigram trainer, whose result differs from one process to the next.
    text = _SPACE + _TEXT.replace("\n", _SPACE).replace(" ", _SPACE)
    scores = [(piece, math.log(text.count(piece) / len(text))) for piece in learned]
    tokenizer = Tokenizer(models.Unigram([*((piece, 0.0) for piece in specials), *scores], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in specials])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=specials[3:],
    )


_BUILDERS: Mapping[str, Callable[[], PreTrainedTokenizerFast]] = MappingProxyType(
    {
        "byte_bpe": _byte_bpe,
        "sentencepiece_bos": _sentencepiece_bos,
        "byte_bpe_bos": _byte_bpe_bos,
        "qwen": _qwen,
        "t5": _t5,
    }
)

KINDS: tuple[str, ...] = tuple(_BUILDERS)


def tiny_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A fresh fast tokenizer of one of :data:`KINDS`, the same one every time.

    ==================  =======================================================================================
    ``byte_bpe``          as GPT-2: byte-level BPE, a leading space belongs to the word, no special is added
    ``sentencepiece_bos`` as Llama 2: ``▁`` in front of the text and for every space, BOS, byte fallback, UNK
    ``byte_bpe_bos``      as Llama 3: byte-level BPE, digits in threes, BOS
    ``qwen``              as Qwen 2: byte-level BPE over NFC, every digit alone, no BOS, a padding token
    ``t5``                as T5: unigram pieces with ``▁``, EOS appended, a padding token, two sentinels
    ==================  =======================================================================================

    Only ``qwen`` and ``t5`` have a padding token, as the originals do.

    Raises:
        KeyError: an unknown kind.
    """
    if kind not in _BUILDERS:
        raise KeyError(f"no tiny tokenizer is of kind {kind!r}; there are {', '.join(KINDS)}")
    return _BUILDERS[kind]()
