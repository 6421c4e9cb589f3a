"""Settings of plain fine-tuning: FT-L, FT-M, breadth-first fine-tuning. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

from attrs import field, frozen, validators

from kedit_core.hparams import HyperParams, ModelShape

Objective: TypeAlias = Literal["target_new", "prompt_last"]
Part: TypeAlias = Literal["mlp_out", "mlp_in", "mlp", "attn_out", "attn", "block"]
Stack: TypeAlias = Literal["decoder", "encoder"]
Anchor: TypeAlias = Literal["round", "base"]

# Published layers as a share of the depth: 21 of 32 (FT, EasyEdit), 22 of 32 (LocFT-BF).
_FT_SHARE = 21 / 32
_BF_SHARE = 22 / 32

# Published bounds shrink with the width: 2e-3 at 1024, 1e-3 at 1280, 5e-4 at 1600, 5e-5 at 4096.
_BOUND, _BOUND_WIDTH, _BOUND_POWER, _BOUND_MOST = 2e-3, 1024, -2.66, 1e-2


def _ascending(instance: Any, attribute: Any, value: Sequence[int]) -> None:
    if not value or list(value) != sorted(set(value)) or value[0] < 0:
        raise ValueError("layers must be one or more, each once, ascending from 0 or more")


def layer_at(share: float, shape: ModelShape) -> int:
    """The block at this share of the depth."""
    return min(round(share * shape.num_layers), shape.num_layers - 1)


@frozen(kw_only=True)
class FtHyperParams(HyperParams):
    """What FT-L, FT-M and breadth-first fine-tuning share.

    Attributes:
        layers: the blocks that are trained, counted from 0.
        part: what of a block: ``mlp_out`` the MLP's down-projection, ``mlp_in`` its input projections, ``mlp`` both,
            ``attn_out`` the attention's output projection, ``attn`` the whole attention, ``block`` all of it.
        stack: in an encoder-decoder, whose blocks ``layers`` counts; other models are all decoder.
        train_bias: train the projections' biases too, where they have some (GPT types do, Llama types do not).
        objective: ``target_new`` feeds prompt and target and asks for each token of the target in its place;
            ``prompt_last`` feeds the prompt alone and asks for all tokens of the target at its last token, as the
            papers' FT-L does: a target of several tokens is then a bag of words.
        append_eos: the target ends with the tokenizer's end-of-sequence token, so that the model learns to stop there.
        num_steps: epochs over the requests of a call, at most.
        lr: learning rate of Adam.
        weight_decay: L2 penalty on the weights (not on how far they move).
        batch_size: requests of one optimiser step.
        norm_constraint: no entry moves further than this from the anchor; None for no limit.
        anchor: from what ``norm_constraint`` is measured: ``round`` the weights that this call started with (so a long
            sequence may drift further), ``base`` the unedited model.
        stop_loss: a batch whose loss is below this makes no step, and an epoch whose mean is, is the last.
        fast: False takes full forwards everywhere: same result, slower.
    """

    layers: tuple[int, ...] = field(validator=_ascending)
    part: Part = field(default="mlp_out", validator=validators.in_(get_args(Part)))
    stack: Stack = field(default="decoder", validator=validators.in_(get_args(Stack)))
    train_bias: bool = True
    objective: Objective = field(default="target_new", validator=validators.in_(get_args(Objective)))
    append_eos: bool = False
    num_steps: int = field(default=25, validator=validators.ge(1))
    lr: float = field(default=5e-4, validator=validators.gt(0))
    weight_decay: float = field(default=0.0, validator=validators.ge(0))
    batch_size: int = field(default=128, validator=validators.ge(1))
    norm_constraint: float | None = field(default=None, validator=validators.optional(validators.gt(0)))
    anchor: Anchor = field(default="round", validator=validators.in_(get_args(Anchor)))
    stop_loss: float = field(default=0.01, validator=validators.ge(0))
    fast: bool = True

    def __attrs_post_init__(self) -> None:
        if self.append_eos and self.objective == "prompt_last":
            raise ValueError("append_eos goes with objective 'target_new'; 'prompt_last' has no place for the token")


@frozen(kw_only=True)
class FtLHyperParams(FtHyperParams):
    """Settings of FT-L: one position, and a bound on every entry."""

    objective: Objective = field(default="prompt_last", validator=validators.in_(get_args(Objective)))

    @classmethod
    def for_depth(cls, shape: ModelShape) -> Mapping[str, Any]:
        """Block 0, and a bound in proportion to the published ones."""
        bound = _BOUND * (shape.hidden_size / _BOUND_WIDTH) ** _BOUND_POWER
        return {"layers": (0,), "norm_constraint": float(f"{min(bound, _BOUND_MOST):.1e}")}


@frozen(kw_only=True)
class FtMHyperParams(FtHyperParams):
    """Settings of FT-M: the target's own tokens, no bound."""

    @classmethod
    def for_depth(cls, shape: ModelShape) -> Mapping[str, Any]:
        """The layer in proportion to the depth, from the published settings."""
        return {"layers": (layer_at(_FT_SHARE, shape),)}


@frozen(kw_only=True)
class FtBfHyperParams(FtHyperParams):
    """Settings of breadth-first fine-tuning.

    Attributes:
        shuffle: draw the mini-batches at random and take them in a new order every epoch; False goes over the requests
            in order.
        replay: the facts of this method's earlier patches that are still on the model join the epochs, so that a
            sequence of rounds stays breadth-first; a round then costs as much as all before it together.
    """

    batch_size: int = field(default=100, validator=validators.ge(1))
    append_eos: bool = True
    shuffle: bool = True
    replay: bool = False

    @classmethod
    def for_depth(cls, shape: ModelShape) -> Mapping[str, Any]:
        """The layer in proportion to the depth, from the published settings."""
        return {"layers": (layer_at(_BF_SHARE, shape),)}
