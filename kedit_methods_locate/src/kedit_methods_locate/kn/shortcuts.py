"""The same probabilities without doing work twice (specification: KN, section 8).

A decoder's keys and values before the predicting position do not depend on its activation, and nothing before block l
depends on block l's: so a row is one token through blocks l and later. An encoder-decoder's encoder is run once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kedit_core.forward import ForwardTools, Pair, Site, cells, evaluating
from kedit_core.forward.calls import PrefixCache, Unfit, record_calls, run_blocks, tail_arguments
from kedit_core.forward.state import Stop, Taps, injected
from kedit_methods_locate.kn.neurons import NeuronLayer, whole
from kedit_methods_locate.kn.passes import Clean, Passes

logger = logging.getLogger(__name__)

# the clean logits of both ways are compared; only one that computes something else is off by more than this
_SAME = {torch.float64: 1e-5, torch.float32: 1e-3}
_SAME_HALF = 0.1

# what a model that handles its cache, masks or positions in a way of its own may raise when its blocks are called alone
_MISFITS = (Unfit, RuntimeError, TypeError, ValueError, LookupError, AttributeError)


def passes_for(tools: ForwardTools, layers: Sequence[NeuronLayer], pair: Pair) -> Passes:
    """The fastest passes that give this model's own logits; the plain ones where ``tools.fast`` is off."""
    plain = Passes(tools, layers, pair)
    # module operations on the stack read whole rows, which the fast way does not give them
    if not tools.fast or (tools.scope is not None and tools.scope.watching):
        return plain
    name = type(tools.model).__name__
    kind = DecoderPasses if plain.seq2seq else ColumnPasses
    try:
        fast = kind(tools, layers, pair, plain.clean)
        if _same(fast, plain.clean):
            return fast
    except _MISFITS as error:
        logger.warning("there is no fast attribution for %s (%s); the plain one is used", name, error)
    else:
        logger.warning("the fast attribution of %s gives other logits; the plain one is used", name)
    return plain


def _same(fast: Passes, clean: Clean) -> bool:
    """Whether setting the clean activations, in several rows and from several blocks, gives the clean logits."""
    last = fast.tokens - 1
    start = {i: clean.activations[i][last, : fast.layers[i].width] for i in {0, len(fast.layers) // 2}}
    with torch.no_grad():
        got = fast.logits(last, {i: value.expand(2, -1) for i, value in sorted(start.items())})
    want = clean.logits[last]
    bound = _SAME.get(got.dtype, _SAME_HALF) * max(1.0, float(want.abs().max()))
    return bool((got.to(want) - want).abs().max() <= bound)


class SharedPrefix(PrefixCache):
    """Keys and values of one row, put in front of those of any number of rows."""

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values ``[rows, heads, seq, width]`` with the prefix in front."""
        if self.recording:
            return super().update(keys, values, layer_idx)
        before = (each[:, :, : self.prefix].expand(len(keys), -1, -1, -1) for each in self.kept[layer_idx])
        return tuple(torch.cat([old, new], dim=-2) for old, new in zip(before, (keys, values), strict=True))  # type: ignore[return-value]


class ColumnPasses(Passes):
    """Decoder-only models: one column from the block on, against the cached keys and values of the columns before.

    Rows of different blocks run together: a block's rows join those of earlier blocks where they begin.

    Raises:
        Unfit: (from the constructor) the model calls its blocks in a way this does not understand.
    """

    def __init__(self, tools: ForwardTools, layers: Sequence[NeuronLayer], pair: Pair, clean: Clean) -> None:
        super().__init__(tools, layers, pair, clean)
        view, batch = tools.view, self.batch(1, self.tokens - 1)
        self._cache = SharedPrefix(batch.width)
        self._mask = batch.attention_mask
        at = cells([0] * self.tokens, range(self.first, self.first + self.tokens))
        sites = [Site(index, "block", "input") for index in range(len(layers))]
        found: dict[Any, Tensor] = {}
        with torch.no_grad(), evaluating(tools.model), tools.following(batch), Taps((1, batch.width)) as taps:
            tools.capture(taps, sites, at, found)
            self._calls = record_calls(taps, view, 0, self._cache)
            taps.stop_at(view.block(view.num_layers - 1), "output", lambda: True)
            with suppress(Stop):
                tools.model(**tools.inputs(batch))
        if len(self._calls.arguments) != len(layers) or len(self._cache.kept) != len(layers):
            raise Unfit("not every block was called once with the KV cache it was given")
        self._cache.recording = False
        self._residuals = [found[site] for site in sites]

    @property
    def row_bytes(self) -> int:
        view = self.tools.view
        prefix = 4 * (len(self.pair.prompt_ids) + self.tokens) * view.hidden_size
        cell = 16 * view.hidden_size + 5 * self.layers[0].width
        return 4 * (len(self.layers) * (cell + prefix) + 4 * view.vocab_size)

    def logits(self, token: int, values: Mapping[int, Tensor]) -> Tensor:
        view, column = self.tools.view, self.first + token
        self._cache.prefix = column
        arguments = {
            index: tail_arguments(named, column, column + 1, self._mask)
            for index, named in self._calls.arguments.items()
        }
        hidden: Tensor | None = None
        with evaluating(self.tools.model), Taps((0, 1)) as taps:
            for index, each in values.items():
                layer = self.layers[index]
                filled = whole(layer, each, self.clean.activations[index][token])
                taps.change(layer.module, layer.site.side, _last_rows(filled))
            for index in range(min(values), len(self.layers)):
                if index in values:
                    joining = self._residuals[index][token].expand(len(values[index]), 1, -1)
                    hidden = joining if hidden is None else torch.cat([hidden.to(joining.device), joining])
                if hidden is not None:
                    taps.layout = (len(hidden), 1)
                    hidden = run_blocks(view, hidden, index, index, arguments)
        if hidden is None:
            raise Unfit("there is no row to run")
        return view.head(hidden[:, 0])


class DecoderPasses(Passes):
    """Encoder-decoders: the encoder's output is kept, and each row runs the decoder over the answer's few columns."""

    def __init__(self, tools: ForwardTools, layers: Sequence[NeuronLayer], pair: Pair, clean: Clean) -> None:
        super().__init__(tools, layers, pair, clean)
        batch = self.batch(1, 0)
        encoder = tools.model.get_encoder()
        with torch.no_grad(), evaluating(tools.model):
            out = encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask, return_dict=True)
        self._encoded: Tensor = out.last_hidden_state

    @property
    def row_bytes(self) -> int:
        view = self.tools.view
        columns = len(self.pair.prompt_ids) + self.tokens
        cell = 24 * view.hidden_size + 5 * self.layers[0].width
        return 4 * (len(self.layers) * (cell * self.tokens + 4 * columns * view.hidden_size) + 4 * view.vocab_size)

    def logits(self, token: int, values: Mapping[int, Tensor]) -> Tensor:
        rows = sum(len(each) for each in values.values())
        batch = self.batch(rows, token)
        columns = torch.full((rows,), token)
        with evaluating(self.tools.model), Taps((rows, token + 1)) as taps:
            for injection, index in zip(self.injections(token, values), values, strict=True):
                layer = self.layers[index]
                taps.change(layer.module, layer.site.side, partial(injected, injection=injection))
            encoded = self._encoded.expand(rows, -1, -1)
            return self.tools.decoder_logits(batch, encoded, cells(range(rows), columns))


def _last_rows(values: Tensor) -> Callable[[Tensor], Tensor]:
    """Replace the last rows of ``[rows, 1, width]``: those that have just joined."""

    def replace(x: Tensor) -> Tensor:
        new = values.to(device=x.device, dtype=x.dtype)[:, None]
        return torch.cat([x[: -len(new)], new])

    return replace
