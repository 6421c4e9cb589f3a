"""What an answer's probability does when neurons are suppressed or enhanced; no weight is changed.

Dai et al. 2022, section 4.3.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from kedit_core.errors import InputError
from kedit_core.forward import ForwardTools, Injection, cells
from kedit_methods_locate.hparams.kn import Neuron
from kedit_methods_locate.kn.neurons import neuron_layers
from kedit_methods_locate.kn.selection import NeuronId


def suppress(
    forward: ForwardTools, prompt: str, answer: str, neurons: Iterable[NeuronId], *, neuron: Neuron = "post"
) -> Tensor:
    """p(answer) with the neurons' activations at zero: :func:`scaled` with factor 0."""
    return scaled(forward, prompt, answer, neurons, 0.0, neuron=neuron)


def enhance(
    forward: ForwardTools, prompt: str, answer: str, neurons: Iterable[NeuronId], *, neuron: Neuron = "post"
) -> Tensor:
    """p(answer) with the neurons' activations doubled: :func:`scaled` with factor 2."""
    return scaled(forward, prompt, answer, neurons, 2.0, neuron=neuron)


def scaled(
    forward: ForwardTools,
    prompt: str,
    answer: str,
    neurons: Iterable[NeuronId],
    factor: float,
    *,
    neuron: Neuron = "post",
) -> Tensor:
    """``[T]`` probabilities of the answer's tokens, each with ``neurons`` times ``factor`` where it is predicted.

    Args:
        forward: tools of the model.
        prompt: what the model reads.
        answer: what it is asked for; its tokens are fed as they are, whatever the model would say.
        neurons: (block, index), each once; none for the clean probabilities.
        factor: 0 suppresses, 2 enhances, 1 leaves them.
        neuron: which tensor is scaled, see the setting of that name.

    Raises:
        InputError: a neuron that the model does not have.
    """
    pair = forward.boundary.pair(prompt, answer)
    layers = neuron_layers(forward.view, neuron)
    chosen: dict[int, list[int]] = {}
    for block, index in neurons:
        if not 0 <= block < len(layers) or not 0 <= index < layers[block].width:
            raise InputError(f"there is no neuron {index} in block {block} of this model")
        chosen.setdefault(block, []).append(index)
    tokens, seq2seq = len(pair.target_ids), forward.view.is_encoder_decoder
    # a row for each token, since a neuron is changed at one position only
    ids = [pair.prompt_ids if seq2seq else (*pair.prompt_ids, *pair.target_ids[:t]) for t in range(tokens)]
    batch = forward.batch(ids, targets=[pair.target_ids] * tokens, prompt_lengths=[len(pair.prompt_ids)] * tokens)
    rows = torch.arange(tokens)
    at = rows + (0 if seq2seq else len(pair.prompt_ids) - 1)
    changes = []
    for block, indices in chosen.items():
        values = torch.ones(layers[block].size)
        values[indices] = factor
        changes.append(Injection(layers[block].site, rows, at, values, "scale"))
    logits = forward.run(batch, inject=changes, logits_at=cells(rows, at)).logits
    if logits is None:
        raise InputError("the model gave no logits")
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
    return wide[rows, torch.tensor(pair.target_ids, device=wide.device)]
