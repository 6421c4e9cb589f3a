"""The scope classifier: an encoder that says how likely a prompt concerns an edit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kedit_core.errors import InputError
from kedit_core.forward import evaluating
from kedit_methods_memory.serac.loading import load_auto, load_tokenizer, save_tokenizer
from kedit_methods_memory.serac.similarity import Metric

_KEPT = 8192  # texts whose vectors are kept
_PAIRS = 64  # pairs of the cross-attention form read at once


class Classifier:
    """An encoder with its tokenizer, in one of two forms.

    Embedding form: a text's vector is the last hidden state at one token (or their mean), cut into heads. When it is
    used, every text is read alone, so that its vector does not depend on its company to the last bit. Cross-attention
    form: a sequence classifier with two classes, the first of which means in scope.

    A text longer than the encoder's positions is read from its end; of a pair the query is, and the key is whole.

    Attributes:
        model: in float32; eval mode is put on whenever it runs.
        pooling: ``first``, ``mean`` or ``last``; of no meaning in the cross-attention form.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, metric: Metric, *, pooling: str = "first") -> None:
        self.model, self.tokenizer, self.metric, self.pooling = model, tokenizer, metric, pooling
        tokenizer.truncation_side = "left"
        tokenizer.padding_side = "right"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    @classmethod
    def load(
        cls, folder: Path, metric: Metric, *, cross: bool = False, pooling: str = "auto", seed: int | None = None
    ) -> Classifier:
        """From a Hugging Face folder of any encoder.

        Args:
            cross: the cross-attention form.
            seed: of a classification head that the folder lacks; None refuses such a folder.

        Raises InputError when the folder cannot be used.
        """
        from transformers import AutoModel, AutoModelForSequenceClassification

        what = "classifier"
        if cross:
            model = load_auto(AutoModelForSequenceClassification, folder, what, seed=seed, num_labels=2)
        else:
            model = load_auto(AutoModel, folder, what)
            if getattr(model.config, "is_encoder_decoder", False):
                raise InputError(f"the classifier in {folder} is an encoder-decoder; give an encoder (DistilBERT, say)")
        tokenizer = load_tokenizer(folder, what)
        return cls(model, tokenizer, metric, pooling=resolved(pooling, tokenizer))

    def save(self, folder: Path) -> None:
        """Write it as a Hugging Face folder of safetensors."""
        save: Any = self.model
        save.save_pretrained(folder)
        save_tokenizer(self.tokenizer, folder)

    @property
    def separator(self) -> str:
        """What stands between the parts of a text."""
        return str(self.tokenizer.sep_token or self.tokenizer.eos_token or "|")

    @property
    def width(self) -> int:
        """Numbers of a text's vector."""
        config: Any = self.model.config
        return int(config.hidden_size)

    @property
    def limit(self) -> int | None:
        """Tokens that a text may have; None without a limit."""
        config: Any = self.model.config
        found = [getattr(config, "max_position_embeddings", None), self.tokenizer.model_max_length]
        known = [int(each) for each in found if each is not None and 0 < each < 1 << 30]
        return min(known, default=None)

    def to(self, device: torch.device) -> None:
        """Move it, where it is not there."""
        if next(self.model.parameters()).device != device:
            self.model.to(device)
            self._known.clear()

    def check_length(self, text: str) -> None:
        """InputError for a text (of a pair: :meth:`paired`) that would be cut."""
        limit = self.limit
        count = len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])
        if limit is not None and count > limit:
            raise InputError(
                f"the edit {text[:60]!r} has {count} tokens for the scope classifier, which reads {limit}; shorten it"
            )

    # ------------------------------------------------------------------ embedding form
    def embed(self, texts: Sequence[str]) -> Tensor:
        """``[texts, heads, width / heads]`` float32 of one padded batch; differentiable."""
        inputs = self._inputs(texts)
        with evaluating(self.model):
            hidden = self.model(**inputs).last_hidden_state
        return self.metric.split(_pooled(hidden, inputs["attention_mask"], self.pooling))

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """As :meth:`embed`, each text read alone and without gradients, and kept."""
        with torch.no_grad():
            return torch.cat([self._vector(text) for text in texts])

    def forget(self) -> None:
        """Drop kept vectors: the encoder has changed."""
        self._known.clear()

    def _vector(self, text: str) -> Tensor:
        if text in self._known:
            self._known.move_to_end(text)
            return self._known[text]
        self._known[text] = self.embed([text])
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return self._known[text]

    # ------------------------------------------------------------------ cross-attention form
    def pair_log_similarities(self, keys: Sequence[str], queries: Sequence[str]) -> Tensor:
        """Log-probability that ``queries[i]`` is in the scope of ``keys[i]``, ``[pairs]``; differentiable."""
        rows = [self._pair_ids(key, query) for key, query in zip(keys, queries, strict=True)]
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        inputs = self._on_device(
            {
                "input_ids": torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows]),
                "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
            }
        )
        with evaluating(self.model):
            logits = self.model(**inputs).logits
        return torch.log_softmax(logits.float(), dim=-1)[:, 0]

    def paired(self, key: str, query: str) -> str:
        """The text that a pair is read as."""
        return f"{self._before(key)}{query}"

    def _before(self, key: str) -> str:
        return f"{key} {self.separator} "

    def _pair_ids(self, key: str, query: str) -> list[int]:
        """A pair as ids; where they are too many, the query lacks its beginning."""
        encoded = self.tokenizer(
            self.paired(key, query), truncation=False, verbose=False, return_offsets_mapping=self.tokenizer.is_fast
        )
        ids: list[int] = encoded["input_ids"]
        over = 0 if self.limit is None else len(ids) - self.limit
        if over <= 0:
            return ids
        if self.tokenizer.is_fast:
            ends = [end for _, end in encoded["offset_mapping"]]
            first = next((i for i, end in enumerate(ends) if end > len(self._before(key))), len(ids))
        else:  # without offsets: where the longest common beginning with the key alone ends
            alone = self.tokenizer(self._before(key), truncation=False, verbose=False)["input_ids"]
            both = zip(ids, alone, strict=False)
            first = next((i for i, (one, other) in enumerate(both) if one != other), len(alone))
        return [*ids[:first], *ids[first + over :]]

    def best_pairs(self, keys: Sequence[str], queries: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The likeliest key of each query: index ``[queries]`` and log-similarity. Time: queries x keys texts.

        Keys are read in the order of their texts, so that neither their order nor other queries change a number.
        """
        order = sorted(range(len(keys)), key=lambda i: keys[i])
        found = []
        with torch.no_grad():
            for query in queries:
                chunks = [order[start : start + _PAIRS] for start in range(0, len(order), _PAIRS)]
                read = [self.pair_log_similarities([keys[i] for i in chunk], [query] * len(chunk)) for chunk in chunks]
                row = torch.empty(len(keys), device=read[0].device)
                row[torch.tensor(order, device=row.device)] = torch.cat(read)
                found.append(row)
        similarity, index = torch.stack(found).max(dim=1)
        return index, similarity

    def _inputs(self, texts: Sequence[str]) -> dict[str, Tensor]:
        encoded = self.tokenizer(
            list(texts), padding=True, truncation=self.limit is not None, max_length=self.limit, return_tensors="pt"
        )
        return self._on_device(encoded)

    def _on_device(self, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        device = next(self.model.parameters()).device
        return {name: encoded[name].to(device) for name in ("input_ids", "attention_mask")}


def resolved(pooling: str, tokenizer: Any) -> str:
    """``auto`` as what it means for a tokenizer: ``first`` where that is the tokenizer's own token, else ``mean``."""
    if pooling != "auto":
        return pooling
    begins = tokenizer("a")["input_ids"][:1]
    return "first" if tokenizer.cls_token_id is not None and begins == [tokenizer.cls_token_id] else "mean"


def _pooled(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """``[n, tokens, width]``, right-padded -> ``[n, width]``."""
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)
