"""A small encoder made from scratch, with the base's own tokens: for models whose language no public encoder reads."""

from __future__ import annotations

from typing import Any

import torch

from kedit_core.errors import InputError

_POSITIONS = 512
_CLS, _SEP, _PAD = "[CLS]", "[SEP]", "[PAD]"


def scratch_encoder(
    tokenizer: Any, *, width: int, layers: int, heads: int, seed: int, classes: bool
) -> tuple[Any, Any]:
    """A random DistilBERT, and a copy of a tokenizer that puts ``[CLS]`` before a text and ``[SEP]`` behind it.

    Args:
        tokenizer: of the base; a fast one, left as it is.
        classes: with a classification head of two classes (the cross-attention form).

    Raises InputError for a slow tokenizer.
    """
    from tokenizers import Tokenizer, processors
    from transformers import (
        DistilBertConfig,
        DistilBertForSequenceClassification,
        DistilBertModel,
        PreTrainedTokenizerFast,
    )

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError("an encoder from scratch needs the base's fast tokenizer; name a classifier instead")
    inner = Tokenizer.from_str(backend.to_str())
    own = PreTrainedTokenizerFast(
        tokenizer_object=inner, cls_token=_CLS, sep_token=_SEP, pad_token=_PAD, model_max_length=_POSITIONS
    )
    backend = own.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    marks = [(mark, own.convert_tokens_to_ids(mark)) for mark in (_CLS, _SEP)]
    backend.post_processor = processors.TemplateProcessing(single=f"{_CLS} $A {_SEP}", special_tokens=marks)
    config = DistilBertConfig(
        vocab_size=len(own),
        dim=width,
        n_layers=layers,
        n_heads=heads,
        hidden_dim=4 * width,
        max_position_embeddings=_POSITIONS,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        pad_token_id=own.pad_token_id,
        num_labels=2,
    )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        model: Any = (DistilBertForSequenceClassification if classes else DistilBertModel)(config)
    return model.eval(), own
