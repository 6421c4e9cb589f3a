"""Settings of LoRA and AdaLoRA. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

from attrs import Factory, field, frozen, validators

from kedit_core.hparams import HyperParams

Loss: TypeAlias = Literal["token", "request"]


def _names(instance: Any, attribute: Any, value: tuple[str, ...]) -> None:
    if not value or not all(name.strip() and name == name.strip() for name in value):
        raise ValueError(f"{attribute.name} must hold at least one name, and no empty one")


def _layers(instance: Any, attribute: Any, value: tuple[int, ...]) -> None:
    if list(value) != sorted(set(value)) or (value and value[0] < 0):
        raise ValueError(f"{attribute.name} must be block numbers from 0, each once, ascending; () means all")


def _usual_loss(instance: Any) -> Loss:
    # a draft whose parity is no truth value is asked too
    return "token" if getattr(instance, "parity", False) else "request"


@frozen(kw_only=True)
class AdapterHyperParams(HyperParams):
    """What LoRA and AdaLoRA share: where the adapters are, and how they are trained.

    Attributes:
        targets: which projections get an adapter: ``q``, ``k``, ``v`` (of the attention; one that computes several of
            these at once is taken whole), ``attn_out``, ``mlp_in``, ``mlp_out``; or the ends of module names
            (``c_attn``, ``mlp.fc_in``).
        layers: blocks that get adapters; () for all.
        alpha: an adapter's output is multiplied by alpha / rank.
        dropout: share of an adapter's inputs left out in training; the model's own dropout stays off.
        num_steps: epochs, each over all requests of a round in chunks of ``batch_size``, in order.
        lr: learning rate of Adam; a fresh one for every round.
        weight_decay: L2 on the adapters' weights, as torch's Adam has it.
        batch_size: requests in a chunk.
        loss: ``request`` takes the mean over each request's target tokens first, so that a long target counts no more
            than a short one; ``token`` the mean over all target tokens of a chunk, as published comparisons ran. The
            same for a chunk of one.
        append_eos: the target ends with the tokenizer's end-of-sequence token, so that the model learns to stop there.
        stop_loss: a chunk whose loss is below this makes no step, and an epoch whose mean is, is the last; 0 makes all
            steps.
    """

    targets: tuple[str, ...] = field(default=("q", "v"), validator=_names)
    layers: tuple[int, ...] = field(default=(), validator=_layers)
    alpha: float = field(default=32.0, validator=validators.gt(0))
    dropout: float = field(default=0.1, validator=[validators.ge(0), validators.lt(1)])
    num_steps: int = field(default=50, validator=validators.ge(1))
    lr: float = field(default=5e-3, validator=validators.gt(0))
    weight_decay: float = field(default=0.0, validator=validators.ge(0))
    batch_size: int = field(default=1, validator=validators.ge(1))
    loss: Loss = field(default="request", validator=validators.in_(get_args(Loss)))
    append_eos: bool = False
    stop_loss: float = field(default=0.0, validator=validators.ge(0))


@frozen(kw_only=True)
class LoraHyperParams(AdapterHyperParams):
    """Settings of LoRA.

    Attributes:
        rank: of each adapter.
    """

    rank: int = field(default=8, validator=validators.ge(1))


@frozen(kw_only=True)
class AdaLoraHyperParams(AdapterHyperParams):
    """Settings of AdaLoRA.

    Attributes:
        init_rank: of each adapter at first; alpha is divided by this, also when ranks have been taken away.
        target_rank: mean rank of an adapter in the end.
        parity: no ranks are taken away, and ``loss`` is ``token`` unless it is given: what published comparisons ran
            under the name of AdaLoRA, LoRA of rank ``init_rank`` in SVD form with the orthogonality loss.
        tinit: steps before the first rank is taken away.
        tfinal: steps after the last one.
        delta_t: steps from one allocation to the next; between them a rank may come back. The last step of all ends
            with an allocation whatever this is.
        beta1, beta2: smoothing of the importance of weights, and of its uncertainty.
        orthogonality: weight of the loss that keeps the singular vectors orthogonal.
    """

    init_rank: int = field(default=12, validator=validators.ge(1))
    target_rank: int = field(default=8, validator=validators.ge(1))
    parity: bool = False
    loss: Loss = field(default=Factory(_usual_loss, takes_self=True), validator=validators.in_(get_args(Loss)))
    tinit: int = field(default=0, validator=validators.ge(0))
    tfinal: int = field(default=0, validator=validators.ge(0))
    delta_t: int = field(default=1, validator=validators.ge(1))
    beta1: float = field(default=0.85, validator=[validators.gt(0), validators.lt(1)])
    beta2: float = field(default=0.85, validator=[validators.gt(0), validators.lt(1)])
    orthogonality: float = field(default=0.5, validator=validators.ge(0))

    def __attrs_post_init__(self) -> None:
        if self.parity:
            return
        if self.tinit + self.tfinal >= self.num_steps:
            raise ValueError("tinit and tfinal leave no step for the allocation; raise num_steps or lower them")
        if self.target_rank >= self.init_rank:
            raise ValueError("target_rank must be below init_rank, or parity set so that no ranks are taken away")
        if self.stop_loss > 0:
            raise ValueError("stop_loss goes with parity only: the allocation of ranks needs all its steps")
