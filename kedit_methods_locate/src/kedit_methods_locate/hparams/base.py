"""What all locate-then-edit methods can be set to. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

from attrs import field, frozen, validators

from kedit_core.hparams import HyperParams, ModelShape

FactToken: TypeAlias = Literal["subject_last", "subject_first", "subject_first_after_last", "last"]
KlPosition: TypeAlias = Literal["subject", "last"]

START_WORDS = ("The", "Therefore", "Because", "I", "You")
"""First words of sampled contexts: they work for every tokenizer, unlike an end-of-text marker."""

# Edited layer as a share of the depth where an architecture's published settings differ from the rest
# (gpt2-xl 17 of 48, gpt-neox-20b 15 of 44); all later decoders were edited at 5 of 28 to 32.
_LAYER_SHARE: Mapping[str, float] = MappingProxyType({"GPT2LMHeadModel": 17 / 48, "GPTNeoXForCausalLM": 15 / 44})
_USUAL_SHARE = 5 / 32
_CLAMP: float | None = 4.0


def layer_by_depth(shape: ModelShape) -> int:
    """The layer that has the same relative depth as the published settings of the nearest architecture."""
    share = _LAYER_SHARE.get(shape.architecture, _USUAL_SHARE)
    return min(max(round(share * shape.num_layers), 0), shape.num_layers - 1)


@frozen(kw_only=True)
class LocateHyperParams(HyperParams):
    """What all locate-then-edit methods share: where to read, the value search, the statistic.

    Attributes:
        fact_token: which token is read and written (one and the same).
        v_num_grad_steps: forward passes of the value search; the last one only measures, so one update fewer.
        v_lr: learning rate of its Adam.
        v_weight_decay: weight of |delta| / |v0|^2 in the loss.
        clamp_norm_factor: |delta| is kept below this times |v0|; None for no clamp.
        kl_factor: weight of the essence term, KL(edited || base) on "{subject} is a".
        kl_position: where the essence is read: ``subject`` (its last token, as the papers' code) or ``last`` (as the
            papers' text).
        early_stop_loss: a request whose loss falls below this is done.
        mom2_adjustment: use the second-moment statistic; False takes the identity, which is not ROME as published.
        mom2_ridge: added to the statistic's diagonal, as a share of its mean; 0 for none, as in the papers. Where units
            are (nearly) never active it keeps updates from growing in their directions without limit.
        mom2_documents: documents of the corpus that the statistic is taken from, at most.
        mom2_max_len: tokens of a document that are read; None for the model's positions, at most 2048.
        mom2_skip_first_token: leave position 0 out of the statistic (its key often dwarfs all others).
        mom2_seed: of the choice of documents.
        fast: False takes the plain path everywhere: full forwards, logits at the same places, same result, slower.
    """

    fact_token: FactToken = field(default="subject_last", validator=validators.in_(get_args(FactToken)))
    v_num_grad_steps: int = field(default=20, validator=validators.ge(1))
    v_lr: float = field(default=0.5, validator=validators.gt(0))
    v_weight_decay: float = field(default=0.5, validator=validators.ge(0))
    clamp_norm_factor: float | None = field(default=_CLAMP, validator=validators.optional(validators.gt(0.0)))
    kl_factor: float = field(default=0.0625, validator=validators.ge(0))
    kl_position: KlPosition = field(default="subject", validator=validators.in_(get_args(KlPosition)))
    early_stop_loss: float = field(default=0.05, validator=validators.ge(0))
    mom2_adjustment: bool = True
    mom2_ridge: float = field(default=0.0, validator=[validators.ge(0), validators.le(1)])
    mom2_documents: int = field(default=100_000, validator=validators.ge(1))
    mom2_max_len: int | None = field(default=None, validator=validators.optional(validators.ge(2)))
    mom2_skip_first_token: bool = False
    mom2_seed: int = 1
    fast: bool = True


def _has_one_slot(instance: Any, attribute: Any, value: tuple[str, ...] | None) -> None:
    for template in value or ():
        if template.count("{}") != 1:
            raise ValueError(f"context template {template!r} must hold '{{}}' exactly once")
    if value is not None and (not value or value[0] != "{}"):
        raise ValueError("context_templates must begin with the bare '{}': the clean value is read there")


@frozen(kw_only=True)
class ContextHyperParams(LocateHyperParams):
    """Settings of methods that read facts in several contexts.

    Attributes:
        context_lengths: (tokens in all, how many) of the sampled contexts; the bare prompt is always the first.
        context_start: texts the samples start from, in equal shares.
        context_templates: contexts as data instead of samples, each with one ``{}``, the first being ``{}`` alone.
    """

    context_lengths: tuple[tuple[int, int], ...] = ((5, 10), (10, 10))
    context_start: tuple[str, ...] = field(default=START_WORDS, validator=validators.min_len(1))
    context_templates: tuple[str, ...] | None = field(default=None, validator=_has_one_slot)

    def named_layers(self) -> Mapping[str, tuple[int, ...]]:
        """Settings that name layers, with the layers: what the model must have."""
        return {}
