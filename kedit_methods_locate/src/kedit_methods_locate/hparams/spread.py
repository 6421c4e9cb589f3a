"""Settings of the methods that write many facts at once over a few layers: MEMIT, EMMET, PMET, AlphaEdit.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

from attrs import field, frozen, validators

from kedit_core.hparams import ModelShape
from kedit_methods_locate.hparams.base import ContextHyperParams, FactToken, layer_by_depth

Spread: TypeAlias = Literal["linear", "sqrt"]
KeyWeights: TypeAlias = Literal["grouped", "uniform"]
Projection: TypeAlias = Literal["mlp_out", "attn_out"]
NullSpace: TypeAlias = Literal["absolute", "energy", "rank"]
Unit: TypeAlias = Literal["absolute", "keys"]

# Published ranges are the ROME layer and a few before it (gpt2-xl 13-17, gpt-j 3-8, llama 4-8 of 32).
_SPAN = 5
_CLAMP: float | None = 0.75
_WEIGHT_PER_WIDTH = 8.0  # the sheet's middle, twice the MLP's inner size, taken as four times the hidden size


def layers_by_depth(shape: ModelShape) -> tuple[int, ...]:
    """As many consecutive layers as published, fewer in shallow models, around the layer that ROME would edit."""
    middle = layer_by_depth(shape)
    span = min(_SPAN, max(1, shape.num_layers // 4))
    last = min(middle + span // 2, shape.num_layers - 1)
    return tuple(range(max(last - span + 1, 0), last + 1))


def _ascending(instance: Any, attribute: Any, value: Sequence[int]) -> None:
    if not value or list(value) != sorted(set(value)) or value[0] < 0:
        raise ValueError(f"{attribute.name} must be one or more layers, each once, ascending from 0 or more")


def _distinct(instance: Any, attribute: Any, value: Sequence[str]) -> None:
    if len(set(value)) != len(value):
        raise ValueError(f"{attribute.name} names a projection twice; name each once")


def _subject_token(instance: Any, attribute: Any, value: str) -> None:
    if value == "last":
        raise ValueError("fact_token 'last' is no token of a subject; this method reads one of the subject's")
    validators.in_(get_args(FactToken))(instance, attribute, value)


@frozen(kw_only=True)
class SpreadHyperParams(ContextHyperParams):
    """What the methods share that search a target for every fact at one layer and spread the gap to it over several.

    Attributes:
        layers: the edited layers, ascending; targets are those of the last.
        spread: what of the gap that is left a layer takes: ``linear`` 1/(layers left), ``sqrt`` 1/sqrt(layers left).
        key_weights: how a key is averaged over contexts: ``grouped`` gives the bare prompt 1/2 and the others the rest
            in equal parts (as the papers' code), ``uniform`` all the same.
        v_loss_layer: block after which the target's likelihood is read; None for the last.
    """

    fact_token: FactToken = field(default="subject_last", validator=_subject_token)
    layers: tuple[int, ...] = field(validator=_ascending)
    clamp_norm_factor: float | None = field(default=_CLAMP, validator=validators.optional(validators.gt(0.0)))
    context_lengths: tuple[tuple[int, int], ...] = ((10, 5),)
    spread: Spread = field(default="linear", validator=validators.in_(get_args(Spread)))
    key_weights: KeyWeights = field(default="grouped", validator=validators.in_(get_args(KeyWeights)))
    v_loss_layer: int | None = field(default=None, validator=validators.optional(validators.ge(0)))

    @classmethod
    def for_depth(cls, shape: ModelShape) -> Mapping[str, Any]:
        """Layers in proportion to the depth, from the published settings."""
        return {"layers": layers_by_depth(shape)}

    def named_layers(self) -> Mapping[str, tuple[int, ...]]:
        """Those that are edited, and the one that is read."""
        return {"layers": self.layers, "v_loss_layer": () if self.v_loss_layer is None else (self.v_loss_layer,)}


@frozen(kw_only=True)
class MemitHyperParams(SpreadHyperParams):
    """Settings of MEMIT.

    Attributes:
        mom2_update_weight: lambda, the weight of the statistic against the new facts; to be seen relative to the MLP's
            inner size m, since an average token's key has a gain of about m.
        protect_past: earlier edits of the same method that are on the model keep what they wrote: their keys join the
            statistic (MEMIT as it is run in sequences; without such edits it changes nothing).
    """

    mom2_update_weight: float = field(default=15_000.0, validator=validators.gt(0))
    protect_past: bool = True

    @classmethod
    def for_depth(cls, shape: ModelShape) -> Mapping[str, Any]:
        """Layers in proportion to the depth, and a weight in proportion to the width."""
        weight = _WEIGHT_PER_WIDTH * shape.hidden_size
        return {**super().for_depth(shape), "mom2_update_weight": weight}


@frozen(kw_only=True)
class EmmetHyperParams(SpreadHyperParams):
    """Settings of EMMET. Its ridge in MEMIT's terms is lambda = mom2_update_weight * emmet_lambda.

    Attributes:
        mom2_update_weight: alpha, the factor of the statistic.
        emmet_lambda: epsilon, added to the diagonal of the facts' matrix when there are several facts.
        ridge: lambda itself, in place of ``emmet_lambda``, which is then lambda / alpha; None to leave that as it is.
        update_norm_lambda: mu, added to the diagonal of the statistic.
        ridge_for_one: add epsilon for a single fact too.
        exact: no epsilon: the layer gives exactly what is asked for (a jitter of 1e-10 of the mean diagonal).
    """

    layers: tuple[int, ...] = field(validator=_ascending)
    mom2_update_weight: float = field(default=10_000.0, validator=validators.gt(0))
    emmet_lambda: float = field(default=0.1, validator=validators.ge(0))
    ridge: float | None = field(default=None, validator=validators.optional(validators.ge(0.0)))
    update_norm_lambda: float = field(default=0.0, validator=validators.ge(0))
    ridge_for_one: bool = False
    exact: bool = False

    def __attrs_post_init__(self) -> None:
        if self.exact and self.ridge:
            raise ValueError("exact takes no ridge; leave one of the two out")

    @classmethod
    def for_depth(cls, shape: ModelShape) -> Mapping[str, Any]:
        """ROME's layer, and a weight in proportion to the width."""
        weight = 10 * _WEIGHT_PER_WIDTH * shape.hidden_size
        return {"layers": (layer_by_depth(shape),), "mom2_update_weight": weight}


@frozen(kw_only=True)
class PmetHyperParams(MemitHyperParams):
    """Settings of PMET.

    Attributes:
        nll_loss_factor: weight of the target's likelihood in the loss; a tenth of it once every target token is the
            most likely one in every context.
        kl_stop: with that, the search ends when the essence term is at most this.
        projections: which projections are edited; ``attn_out`` beside or instead of ``mlp_out``.
    """

    kl_factor: float = field(default=1.0, validator=validators.ge(0))
    spread: Spread = field(default="sqrt", validator=validators.in_(get_args(Spread)))
    nll_loss_factor: float = field(default=1.0, validator=validators.gt(0))
    kl_stop: float = field(default=0.01, validator=validators.ge(0))
    projections: tuple[Projection, ...] = field(
        default=("mlp_out",),
        validator=[
            validators.min_len(1),
            validators.deep_iterable(validators.in_(get_args(Projection))),
            _distinct,
        ],
    )


@frozen(kw_only=True)
class AlphaEditHyperParams(SpreadHyperParams):
    """Settings of AlphaEdit.

    Attributes:
        nullspace_rule: which directions of the statistic may be written into: ``absolute``, those of eigenvalue below
            ``nullspace_threshold`` (as published, for the published models); ``energy``, the largest set of small
            ones whose sum is at most ``nullspace_energy`` of the trace; ``rank``, the ``nullspace_rank`` smallest.
        nullspace_threshold: tau, an eigenvalue.
        nullspace_energy: eta, a share of the trace.
        nullspace_rank: how many.
        l2: weight of the update's own size.
        l2_unit: ``absolute``, or ``keys``: in units of the mean squared length that ordinary keys have inside the null
            space, so that a fact with such a key gets 1/(1 + l2) of what it asks for.
        mom2_update_weight: lambda, a weight of the statistic inside the null space, as MEMIT's; 0 as published, which
            treats all directions there alike.
        protect_past: the keys of earlier edits of this method that are on the model are left alone, too.
    """

    nullspace_rule: NullSpace = field(default="energy", validator=validators.in_(get_args(NullSpace)))
    nullspace_threshold: float = field(default=0.02, validator=validators.gt(0))
    nullspace_energy: float = field(default=0.02, validator=[validators.gt(0), validators.lt(1)])
    nullspace_rank: int | None = field(default=None, validator=validators.optional(validators.ge(1)))
    l2: float = field(default=10.0, validator=validators.gt(0))
    l2_unit: Unit = field(default="absolute", validator=validators.in_(get_args(Unit)))
    mom2_update_weight: float = field(default=0.0, validator=validators.ge(0))
    protect_past: bool = True

    def __attrs_post_init__(self) -> None:
        if (self.nullspace_rule == "rank") != (self.nullspace_rank is not None):
            raise ValueError("nullspace_rank goes with nullspace_rule 'rank', and with no other")

    @classmethod
    def for_depth(cls, shape: ModelShape) -> Mapping[str, Any]:
        """Layers in proportion to the depth; the energy rule and a relative ridge, which need no model's scale."""
        return {**super().for_depth(shape), "nullspace_rule": "energy", "l2": 0.1, "l2_unit": "keys"}
