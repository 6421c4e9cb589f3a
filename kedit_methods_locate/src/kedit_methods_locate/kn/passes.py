"""Running a model with the activations of chosen neurons set: the plain way, and what all ways share.

A row of a run is one block with one setting of its neurons at the position that predicts an answer's token; everything
else is computed normally (Dai et al. 2022, section 3.1). The faster ways are in :mod:`shortcuts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.errors import InputError
from kedit_core.forward import Batch, ForwardTools, Injection, Pair, cells
from kedit_core.forward import frozen as frozen_parameters
from kedit_methods_locate.kn.neurons import NeuronLayer, whole


@frozen(eq=False)
class Clean:
    """What the model gives for a prompt and its answer, each answer token read after the true ones before it.

    Attributes:
        activations: per block ``[T, all]`` at the T predicting positions (a neuron is one of the first ``width``).
        logits: ``[T, vocabulary]`` at least float32.
        target: ``[T]`` the answer's ids.
    """

    activations: tuple[Tensor, ...]
    logits: Tensor
    target: Tensor

    @property
    def probabilities(self) -> Tensor:
        """``[T]`` of the answer's tokens."""
        return self.logits.softmax(-1).gather(1, self.target[:, None]).squeeze(1)

    @property
    def predicted(self) -> bool:
        """Whether each token is the most likely one where it stands."""
        return bool((self.logits.argmax(-1) == self.target).all())


class Passes:
    """Probabilities of one answer after one prompt, as functions of the neurons' activations; the plain way.

    Every row is a full forward pass of the model with a hook on the block's MLP.

    Args:
        tools: run the model.
        layers: its neurons.
        pair: the prompt's and the answer's ids.
        clean: as another of the same pair read it, or None to read it.
    """

    def __init__(
        self, tools: ForwardTools, layers: Sequence[NeuronLayer], pair: Pair, clean: Clean | None = None
    ) -> None:
        self.tools, self.layers, self.pair = tools, tuple(layers), pair
        self.seq2seq = tools.view.is_encoder_decoder
        self.first = 0 if self.seq2seq else len(pair.prompt_ids) - 1
        self.clean = clean if clean is not None else self._read()

    @property
    def dtype(self) -> torch.dtype:
        """Of scores: float32, or the model's when that is wider."""
        return torch.promote_types(self.clean.activations[0].dtype, torch.float32)

    @property
    def tokens(self) -> int:
        """How many tokens the answer has: T."""
        return len(self.pair.target_ids)

    @property
    def row_bytes(self) -> int:
        """Roughly what a row needs with its gradient."""
        view = self.tools.view
        columns = len(self.pair.prompt_ids) + self.tokens
        blocks = len(self.layers) + (view.num_layers if self.seq2seq else 0)
        cell = 16 * view.hidden_size + 5 * self.layers[0].width + 4 * columns
        return 4 * (blocks * columns * cell + 4 * view.vocab_size)

    def log_probabilities(self, token: int, values: Mapping[int, Tensor]) -> Tensor:
        """``[rows]`` log p(answer's token ``token``), differentiable in ``values``.

        Args:
            token: which of the answer's tokens; activations are set at the position that predicts it, and only there.
            values: block -> ``[k, width]`` activations of its neurons, a row each; rows are in the order of the blocks.
        """
        with frozen_parameters(self.tools.model):
            logits = self.logits(token, dict(sorted(values.items())))
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return wide.log_softmax(-1)[:, self.pair.target_ids[token]]

    def logits(self, token: int, values: Mapping[int, Tensor]) -> Tensor:
        """``[rows, vocabulary]`` at the predicting position; ``values`` in the order of the blocks."""
        rows = sum(len(each) for each in values.values())
        batch = self.batch(rows, token)
        column = torch.full((rows,), self.first + token)
        run = self.tools.run(
            batch, inject=self.injections(token, values), logits_at=cells(range(rows), column), grad=True
        )
        return _there(run.logits)

    def batch(self, rows: int, token: int) -> Batch:
        """``rows`` times the prompt with the answer up to what is fed when token ``token`` is predicted."""
        prompt, target = self.pair.prompt_ids, self.pair.target_ids
        ids = prompt if self.seq2seq else (*prompt, *target[:token])
        return self.tools.batch([ids] * rows, targets=[target[: token + 1]] * rows, prompt_lengths=[len(prompt)] * rows)

    def injections(self, token: int, values: Mapping[int, Tensor]) -> list[Injection]:
        """The activations of each block set in its own rows, at the predicting position."""
        made, start = [], 0
        for index, each in values.items():
            layer = self.layers[index]
            rows = torch.arange(start, start + len(each))
            start += len(each)
            filled = whole(layer, each, self.clean.activations[index][token])
            made.append(Injection(layer.site, rows, torch.full_like(rows, self.first + token), filled, "set"))
        return made

    def _read(self) -> Clean:
        batch = self.batch(1, self.tokens - 1)
        at = cells([0] * self.tokens, range(self.first, self.first + self.tokens))
        run = self.tools.run(batch, capture=[layer.site for layer in self.layers], at=at, logits_at=at)
        logits = _there(run.logits)
        return Clean(
            tuple(run.activations[layer.site] for layer in self.layers),
            logits.to(torch.promote_types(logits.dtype, torch.float32)),
            torch.tensor(self.pair.target_ids, device=logits.device),
        )


def _there(logits: Tensor | None) -> Tensor:
    if logits is None:
        raise InputError("the model gave no logits")
    return logits
