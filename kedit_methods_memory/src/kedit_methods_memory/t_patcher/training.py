"""Training the neurons of one edit (sheet sections 2 to 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.editing import EditContext
from kedit_core.errors import MethodError
from kedit_methods_memory.hparams.t_patcher import Form, MemoryForm, TPatcherHyperParams
from kedit_methods_memory.t_patcher import objective
from kedit_methods_memory.t_patcher.neurons import Neurons
from kedit_methods_memory.t_patcher.states import Path, Reading, Whole, own_randomness
from kedit_methods_memory.t_patcher.stopping import StopRule

_PLATEAU = {"factor": 0.5, "patience": 1, "threshold": 0.05}
_REMEDY = "lower lr or amplify, or run the model in float32 or bfloat16"


@frozen(eq=False)
class Example:
    """A fact to learn.

    Attributes:
        path: logits and queries where the tokens of its target are asked for.
        targets: ``[n]`` their ids.
        wrong: which of them the model got wrong: each neuron is tied to one, in this order.
        query: ``[n, width]`` as the unpatched MLP is given them, without dropout.
    """

    path: Path
    targets: Tensor
    wrong: tuple[int, ...]
    query: Tensor


@frozen(eq=False)
class Texts:
    """What must not change: queries ``[n, width]``, or for a divergence a path with the logits it had before."""

    vectors: Tensor
    samples: tuple[Path, Tensor] | None = None


@frozen(eq=False)
class Trained:
    """What training found.

    Attributes:
        neurons: in the order of the example's wrong positions.
        epochs: steps made.
        right: whether every token of the target was the likeliest one in the state that is kept.
        loss: edit loss of that state.
        memory_loss: memory loss of that state on the validation texts.
    """

    neurons: Neurons
    epochs: int
    right: bool
    loss: float
    memory_loss: float


@frozen(eq=False)
class Terms:
    """The parts of one loss, with the logits they came from."""

    edit: Tensor
    act: Tensor
    memory: Tensor
    logits: Tensor


class Weights:
    """What is trained: keys, biases, and values as a product of two factors.

    ``k_i = q_i / |q_i|^2`` and ``b_i = 0``, so that each neuron's input on its own position is 1 at first.
    """

    def __init__(self, query: Tensor, hparams: TPatcherHyperParams, generator: torch.Generator) -> None:
        wide = query.to(torch.promote_types(query.dtype, torch.float32))
        squares = wide.square().sum(-1, keepdim=True)
        if not bool((squares > 0).all() and torch.isfinite(squares).all()):
            raise MethodError("the last MLP's input is zero or not finite where a neuron was to stand; check the model")
        count, width = wide.shape
        drawn = torch.randn(width, count, generator=generator).T.contiguous()
        self.keys = (wide / squares).requires_grad_()
        self.bias = wide.new_zeros(count).requires_grad_()
        self.base = drawn.to(wide).requires_grad_()
        self.factor = None if hparams.amplify is None else torch.full_like(wide, hparams.amplify)
        if self.factor is not None and not hparams.freeze_amplify:
            self.factor.requires_grad_()

    def parameters(self) -> list[Tensor]:
        """What the optimiser moves."""
        every = (self.keys, self.bias, self.base, self.factor)
        return [each for each in every if each is not None and each.requires_grad]

    def neurons(self, activation: str) -> Neurons:
        """As they are now, in the graph of what is trained."""
        values = self.base if self.factor is None else self.base * self.factor
        return Neurons(self.keys, self.bias, values, activation)


class Objective:
    """The loss of one example."""

    def __init__(self, example: Example, hparams: TPatcherHyperParams) -> None:
        self.example, self.hparams = example, hparams
        self.act_form, self.memory_form = Form.parse(hparams.act_loss), MemoryForm.parse(hparams.memory_loss)

    def terms(self, neurons: Neurons, texts: Texts, dropout: bool = False) -> Terms:
        """The losses of these neurons beside the model, none weighted yet."""
        path, hparams = self.example.path, self.hparams
        reading = path.read(neurons, dropout=True) if dropout and isinstance(path, Whole) else path.read(neurons)
        copies = max(1, hparams.example_repeat // len(reading.logits))
        z = self._own_inputs(neurons, reading)
        tokens = self.example.targets.repeat(len(reading.logits)).to(reading.logits.device)
        return Terms(
            objective.edit_loss(reading.logits.flatten(0, 1), tokens, hparams.label_smoothing),
            objective.act_loss(z, self.act_form, hparams.act_margin, copies),
            self._memory_loss(neurons, texts, z, copies),
            reading.logits,
        )

    def total(self, terms: Terms) -> Tensor:
        """l_e + a l_a + c l_m."""
        home = terms.edit.device
        return (
            terms.edit
            + self.hparams.act_weight * terms.act.to(home)
            + self.hparams.memory_weight * terms.memory.to(home)
        )

    def right(self, terms: Terms) -> bool:
        """Whether every token is the likeliest one after those before it: greedy decoding then writes the target."""
        return bool((terms.logits.argmax(-1) == self.example.targets.to(terms.logits.device)).all())

    def _own_inputs(self, neurons: Neurons, reading: Reading) -> Tensor:
        """z ``[rows, neurons]``, each neuron's at its own position."""
        own = reading.query[:, list(self.example.wrong)].to(neurons.keys)
        return (own * neurons.keys).sum(-1) + neurons.bias

    def _memory_loss(self, neurons: Neurons, texts: Texts, z: Tensor, copies: int) -> Tensor:
        if texts.samples is not None:
            path, before = texts.samples
            return objective.divergence(before, path.read(neurons).logits.flatten(0, 1))
        margins = (self.hparams.memory_margin_1, self.hparams.memory_margin_2)
        tiled = self.hparams.memory_tiled
        return objective.memory_loss(
            neurons.inputs(texts.vectors), z, self.memory_form, margins, copies=copies, tiled=tiled
        )


def train(
    context: EditContext,
    example: Example,
    texts: Sequence[Texts],
    activation: str,
    hparams: TPatcherHyperParams,
) -> Trained:
    """Neurons for one example.

    Args:
        texts: to train on, and to validate on.

    Raises MethodError when the loss stops being a number.
    """
    goal = Objective(example, hparams)
    weights = Weights(example.query[list(example.wrong)], hparams, context.generator)
    seed = int(torch.randint(2**62, (1,), generator=context.generator)) if hparams.dropout else None
    parameters = weights.parameters()
    adam = torch.optim.Adam(parameters, lr=hparams.lr, weight_decay=hparams.weight_decay)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, **_PLATEAU)  # type: ignore[arg-type]
    rule, best, made = StopRule(), None, 0
    with own_randomness(seed), context.progress("training neurons", total=float(hparams.max_epochs)) as shown:
        for epoch in range(1, hparams.max_epochs + 1):
            with torch.enable_grad():
                loss = goal.total(goal.terms(weights.neurons(activation), texts[0], hparams.dropout))
            adam.zero_grad()
            loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, hparams.clip_norm)
            adam.step()
            made = epoch
            shown.advance()
            if epoch % hparams.validate_every:
                continue
            now = _looked(goal, weights, texts[1], activation, epoch)
            plateau.step(now.loss)
            if epoch <= hparams.min_epochs or not now.right:
                continue
            if best is None or now.memory_loss < best.memory_loss:
                best = now
            if not hparams.use_validation or rule.ends_with(now.memory_loss):
                break
    if best is None or hparams.keep == "last":
        best = _looked(goal, weights, texts[1], activation, made)
    return Trained(best.neurons, made, best.right, best.loss, best.memory_loss)


def _looked(goal: Objective, weights: Weights, texts: Texts, activation: str, epoch: int) -> Trained:
    """The present state and how good it is, without dropout."""
    with torch.no_grad():
        neurons = weights.neurons(activation)
        terms = goal.terms(neurons, texts)
        found = float(goal.total(terms))
        if not math.isfinite(found):
            raise MethodError(f"the loss is {found} after {epoch} steps; {_REMEDY}")
        held = Neurons(neurons.keys.clone(), neurons.bias.clone(), neurons.values.clone(), activation)
    return Trained(held, epoch, goal.right(terms), float(terms.edit), float(terms.memory))
