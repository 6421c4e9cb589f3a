"""One batch on its way through a model that writes token by token: its KV cache, mask and positions.

The head is run only where logits are read.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from kedit_core.forward.batch import Batch
from kedit_core.forward.run import decoder_start, takes
from kedit_core.forward.state import picked, with_input

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kedit_core.models import ModelView


class Decoder(ABC):
    """One batch of prompts. ``prefill`` and ``step`` give next-token logits ``[rows, vocabulary]``.

    Args:
        model, view: the model and its parts.
        batch: the prompts, on the model's device; causal ones may have tokens of a target after them.
    """

    def __init__(self, model: PreTrainedModel, view: ModelView, batch: Batch) -> None:
        self.model = model
        self.view = view
        self.batch = batch
        self.device = batch.input_ids.device
        self.mask = batch.attention_mask

    @abstractmethod
    def prefill(self) -> Tensor:
        """Read the prompts; logits after each row's last token."""

    @abstractmethod
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Give every row one more token; logits after it."""

    @abstractmethod
    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""

    def _logits(self, cells: Tensor | None, **named: Any) -> Tensor:
        """Logits at ``cells`` ``[n, 2]``, or at the last column of every row when None."""

        def only(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else next(iter(kwargs.values()))
            read = hidden[:, -1] if cells is None else picked(hidden, cells)
            return with_input(args, kwargs, read.unsqueeze(1))

        handle = self.view.lm_head.register_forward_pre_hook(only, with_kwargs=True)
        try:
            logits: Tensor = self.model(**named, return_dict=True).logits
        finally:
            handle.remove()
        return logits[:, 0]


class CausalDecoder(Decoder):
    """A batch of a decoder-only model."""

    def __init__(self, model: PreTrainedModel, view: ModelView, batch: Batch) -> None:
        super().__init__(model, view, batch)
        # without the config every layer keeps all columns: sliding windows are then a matter of masks alone, and rows
        # can be moved
        self.cache = DynamicCache()
        self.starts = batch.starts
        self.lengths = batch.lengths
        self._takes_positions = takes(view.model, "position_ids")

    def prefill(self) -> Tensor:
        rows = torch.arange(self.batch.rows, device=self.device)
        logits = self.read(torch.stack([rows, self.starts + self.lengths - 1], dim=1))
        if self.batch.side == "right":
            self._take(rows, self.lengths)
        return logits

    def read(self, cells: Tensor) -> Tensor:
        """Read the batch as it is; logits ``[n, vocabulary]`` at ``cells`` ``[n, 2]``.

        What is right padded must go through :meth:`part` before anything follows.
        """
        return self._fed(self.batch.input_ids, self.mask, self.batch.position_ids, cells)

    def part(self, rows: Tensor, lengths: Tensor) -> CausalDecoder:
        """A decoder of these rows (any of them, any number of times), each as after its first ``lengths`` tokens.

        This one stays as it is. Memory: the cache of the new one.
        """
        other = copy.copy(self)
        other._take(rows, lengths)
        return other

    def extend(self, tokens: Sequence[Sequence[int]], cells: Tensor) -> Tensor:
        """Give every row some more tokens at once, right padded; logits at ``cells``, columns counted from the first.

        Nothing may follow, unless all rows had as many.
        """
        counts = torch.tensor([len(each) for each in tokens])
        ids = torch.zeros((len(tokens), int(counts.max())), dtype=torch.long)
        for row, each in enumerate(tokens):
            ids[row, : len(each)] = torch.tensor(each, dtype=torch.long)
        columns = torch.arange(ids.shape[1]).unsqueeze(0)
        mask = (columns < counts.unsqueeze(1)).to(self.mask)
        # a padded column repeats the last position, which is there even when no other is left
        positions = self.lengths.unsqueeze(1) + torch.minimum(columns, counts.unsqueeze(1) - 1).to(self.device)
        self.mask = torch.cat([self.mask, mask], dim=1)
        self.lengths = self.lengths + counts.to(self.device)
        return self._fed(ids.to(self.device), self.mask, positions, cells)

    def step(self, tokens: Sequence[int]) -> Tensor:
        ids = torch.tensor(tokens, device=self.device).unsqueeze(1)
        self.mask = torch.cat([self.mask, torch.ones_like(ids)], dim=1)
        positions = self.lengths.unsqueeze(1)
        self.lengths = self.lengths + 1
        return self._fed(ids, self.mask, positions, None)

    def select(self, rows: Tensor) -> None:
        self.mask = self.mask[rows]
        self.lengths = self.lengths[rows]
        self.starts = self.starts[rows]
        self.cache.batch_select_indices(rows)  # layers may be on several devices, which all take an index on the CPU

    def _fed(self, ids: Tensor, mask: Tensor, positions: Tensor, cells: Tensor | None) -> Tensor:
        named = {"position_ids": positions} if self._takes_positions else {}
        return self._logits(
            cells, input_ids=ids, attention_mask=mask, past_key_values=self.cache, use_cache=True, **named
        )

    def _take(self, rows: Tensor, lengths: Tensor) -> None:
        """Rows with the first ``lengths`` tokens of each, moved to the right end: windows and local attention count
        columns, not positions."""
        rows, lengths = rows.to(self.device), lengths.to(self.device)
        width = int(lengths.max())
        starts = width - lengths
        columns = torch.arange(width, device=self.device).unsqueeze(0)
        order = (columns - starts.unsqueeze(1) + self.starts[rows].unsqueeze(1)).clamp(min=0)
        self.mask = (columns >= starts.unsqueeze(1)).to(self.mask)
        self.starts, self.lengths = starts, lengths
        cache = copy.copy(self.cache)
        cache.layers = [_moved(layer, rows, order) for layer in self.cache.layers]
        self.cache = cache


def _moved(layer: Any, rows: Tensor, order: Tensor) -> Any:
    """A cache layer of other rows and columns (``[rows, width]``)."""
    other = copy.copy(layer)
    rows, order = rows.to(layer.keys.device), order.to(layer.keys.device)[:, None, :, None]
    for name in ("keys", "values"):
        tensor = getattr(layer, name)
        if rows.shape[0] != tensor.shape[0] or not torch.equal(rows, torch.arange(rows.shape[0], device=rows.device)):
            tensor = tensor[rows]
        shape = (*tensor.shape[:2], order.shape[2], tensor.shape[3])
        setattr(other, name, tensor.gather(2, order.expand(shape)))
    return other


class Seq2SeqDecoder(Decoder):
    """A batch of an encoder-decoder: prompts go to the encoder, which runs once."""

    def __init__(self, model: PreTrainedModel, view: ModelView, batch: Batch) -> None:
        super().__init__(model, view, batch)
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self._encoded: Tensor | None = None

    @property
    def encoded(self) -> Tensor:
        """The encoder's output ``[rows, seq, hidden]``."""
        return self.encode() if self._encoded is None else self._encoded

    def encode(self) -> Tensor:
        """Run the encoder now, rather than when it is first needed."""
        output = self.model.get_encoder()(input_ids=self.batch.input_ids, attention_mask=self.mask, return_dict=True)
        self._encoded = encoded = cast(Tensor, output.last_hidden_state)
        return encoded

    def prefill(self) -> Tensor:
        return self.step([decoder_start(self.model)] * int(self.encoded.shape[0]))

    def read(self, rows: Tensor, fed: Tensor, cells: Tensor) -> Tensor:
        """Logits at ``cells`` of decoder inputs ``fed`` ``[n, target]``, each after the prompt of a row in ``rows``."""
        encoded = BaseModelOutput(last_hidden_state=self.encoded[rows.to(self.device)])
        return self._logits(
            cells, encoder_outputs=encoded, attention_mask=self.mask[rows], decoder_input_ids=fed, use_cache=False
        )

    def step(self, tokens: Sequence[int]) -> Tensor:
        ids = torch.tensor(tokens, device=self.device).unsqueeze(1)
        return self._logits(
            None, encoder_outputs=BaseModelOutput(last_hidden_state=self.encoded), attention_mask=self.mask,
            decoder_input_ids=ids, past_key_values=self.cache, use_cache=True,
        )  # fmt: skip

    def select(self, rows: Tensor) -> None:
        self.mask = self.mask[rows]
        self._encoded = self.encoded[rows.to(self.device)]
        self.cache.batch_select_indices(rows)
