"""Settings of MELO. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

from attrs import field, frozen, validators

from kedit_core.hparams import HyperParams, ModelShape

Part: TypeAlias = Literal["mlp_in", "mlp_out", "attn_out"]
Factor: TypeAlias = Literal["blocks", "one"]

_SCOPE_SHARE = 0.75
_TARGETS = 2  # blocks above the scope layer


def _layers(instance: Any, attribute: Any, value: tuple[int, ...]) -> None:
    if any(layer < 0 for layer in value) or list(value) != sorted(set(value)):
        raise ValueError(f"{attribute.name} are counted from 0, each once, in ascending order")


@frozen(kw_only=True)
class MeloHyperParams(HyperParams):
    """Settings of MELO.

    Attributes:
        scope_layer: block in which prompts are told apart (an encoder-decoder's encoder).
        scope_part: the projection in it whose output is read.
        layers: blocks whose projections get an adapter; all above ``scope_layer``.
        parts: which of their projections; ``mlp_in`` is all that go into the MLP.
        decoder_layers: the same for blocks of an encoder-decoder's decoder.
        radius: of a new cluster, and the least of one that grows; in units of the scope projection's output.
        rank: of a block, p.
        blocks: how many there may be, N. Each batch of edits uses one up.
        edits_per_block: requests of a round are cut into batches of so many.
        lora_factor: what a block's product is multiplied by: N as published (``blocks``), or 1.
        lr: Adam's rate.
        num_iter: steps of each batch.
        lr_gamma: the rate is multiplied by this after every ``lr_step`` steps.
        lr_step: see there.
        fast: run only the blocks from the lowest adapter on; False runs whole passes: the same up to rounding, slower.
    """

    scope_layer: int = field(validator=validators.ge(0))
    scope_part: Part = field(default="mlp_out", validator=validators.in_(get_args(Part)))
    layers: tuple[int, ...] = field(validator=_layers)
    parts: tuple[Part, ...] = field(
        default=("mlp_in", "mlp_out"),
        validator=[validators.min_len(1), validators.deep_iterable(validators.in_(get_args(Part)))],
    )
    decoder_layers: tuple[int, ...] = field(default=(), validator=_layers)
    radius: float = field(default=0.5, validator=validators.gt(0))
    rank: int = field(default=2, validator=validators.ge(1))
    blocks: int = field(default=100, validator=validators.ge(1))
    edits_per_block: int = field(default=4, validator=validators.ge(1))
    lora_factor: Factor = field(default="blocks", validator=validators.in_(get_args(Factor)))
    lr: float = field(default=1e-3, validator=validators.gt(0))
    num_iter: int = field(default=50, validator=validators.ge(1))
    lr_gamma: float = field(default=0.5, validator=[validators.gt(0), validators.le(1)])
    lr_step: int = field(default=20, validator=validators.ge(1))
    fast: bool = True

    def __attrs_post_init__(self) -> None:
        if not self.layers and not self.decoder_layers:
            raise ValueError("layers is empty, so nothing gets an adapter; name at least one block")
        if self.layers and self.layers[0] <= self.scope_layer:
            raise ValueError(
                f"layers has block {self.layers[0]}, which runs before the decision at scope_layer {self.scope_layer} "
                "is there; choose blocks above it"
            )
        if len(set(self.parts)) < len(self.parts):
            raise ValueError("parts names one part twice")

    @property
    def factor(self) -> float:
        """What a block's product is multiplied by."""
        return float(self.blocks) if self.lora_factor == "blocks" else 1.0

    @classmethod
    def for_depth(cls, shape: ModelShape) -> Mapping[str, Any]:
        """The scope three quarters up, adapters in the two blocks above."""
        scope = min(max(round(_SCOPE_SHARE * shape.num_layers), 0), max(shape.num_layers - 1 - _TARGETS, 0))
        last = min(scope + _TARGETS, shape.num_layers - 1)
        return {"scope_layer": scope, "layers": list(range(scope + 1, last + 1))}
