"""Settings of WISE. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

from attrs import field, frozen, validators

from kedit_core.hparams import HyperParams, ModelShape

Part: TypeAlias = Literal["mlp_out", "mlp_in"]
Act: TypeAlias = Literal["phi", "none"]
Decay: TypeAlias = Literal["none", "leaky"]
MergeAlgorithm: TypeAlias = Literal["ties", "dare_ties", "linear", "slerp", "magnitude", "sign"]
LongPrompts: TypeAlias = Literal["mean", "max"]

_SHARE = 27 / 32  # published: block 27 of 32 (Llama 2 7B, Mistral 7B)


def _limit(instance: Any, attribute: Any, value: float | None) -> None:
    if value is not None and value <= 0:
        raise ValueError("the limit must be above 0, or null for none")


def _templates(instance: Any, attribute: Any, value: Sequence[str] | None) -> None:
    if value is None:
        return
    if not value or any(template.count("{}") != 1 for template in value) or value[0] != "{}":
        raise ValueError("templates must each have one {}, and the first must be the bare {}")


def _lengths(instance: Any, attribute: Any, value: Sequence[tuple[int, int]]) -> None:
    if any(tokens < 1 or count < 1 for tokens, count in value):
        raise ValueError("each entry is (new tokens, how many templates), both 1 or more")


@frozen(kw_only=True)
class WiseHyperParams(HyperParams):
    """Settings of WISE (Wang et al. 2024, arXiv 2405.14768).

    Attributes:
        layer: the block whose MLP gets a side memory, counted from 0.
        part: which matrix: ``mlp_out`` the MLP's down-projection, ``mlp_in`` its input projection (only where it has
            one, as GPT types have).
        lr: step of plain gradient descent on the side memory.
        n_iter: steps for each round at most.
        alpha: what an irrelevant text's routing activation should stay below.
        beta: what an edit's should be above.
        gamma: how far both should be apart.
        act_ratio: share of the weakest edit's routing activation that a prompt must reach to be answered by a memory.
        rho: share of the matrix's entries that one shard may change.
        norm_constraint: no entry moves further than this; None for no limit.
        weight_decay: of ``decay="leaky"``.
        decay: ``leaky`` as the released code has it: every entry of the side matrix shrinks in each step, also those
            that the shard may not change; ``none`` leaves them alone.
        save_freq: edits of a shard.
        merge_freq: edits after which shards are merged; a multiple of ``save_freq``.
        merge_alg: how: ``ties``, ``dare_ties``, ``linear`` (weighted sum), ``slerp`` (along the sphere, in turn),
            ``magnitude`` (largest entries, weighted sum) or ``sign`` (all entries that agree with the elected sign).
        density: share of entries that ``ties``, ``magnitude`` (the largest) and ``dare_ties`` (any) keep of each shard.
        weights: what the shards' weights add up to.
        retrieve: keep merged memories side by side and pick one for each prompt (WISE-Retrieve); False merges all into
            one (WISE-Merge).
        replay: while training, hold prompts of earlier merges below ``replay_low`` and one of the shards' own above
            ``replay_high``; only with ``retrieve``, after the first merge.
        replay_low, replay_high: the routing activations that ``replay`` holds prompts below and above.
        act: ``phi`` measures routing activations behind the MLP's activation function, as the released code does and
            the published margins want it; ``none`` as the paper writes it.
        long_prompts: how the activations of a prompt of more than 100 tokens are put together: ``max`` as the released
            code does.
        irrelevant_texts: irrelevant texts for each edit, when it brings none itself.
        context_templates: texts that prompts are put behind, the bare one first; None has the model write some.
        context_lengths: how many the model writes: (new tokens, templates) each.
        context_start: what it writes on from, in turn.
        fast: False takes full forwards everywhere: same result, slower.
    """

    layer: int = field(validator=validators.ge(0))
    part: Part = field(default="mlp_out", validator=validators.in_(get_args(Part)))
    lr: float = field(default=1.0, validator=validators.gt(0))
    n_iter: int = field(default=70, validator=validators.ge(1))
    alpha: float = field(default=5.0, validator=validators.ge(0))
    beta: float = field(default=20.0, validator=validators.ge(0))
    gamma: float = field(default=10.0, validator=validators.ge(0))
    act_ratio: float = field(default=0.88, validator=validators.gt(0))
    rho: float = field(default=0.2, validator=[validators.gt(0), validators.le(1)])
    norm_constraint: float | None = field(default=1.0, validator=_limit)
    weight_decay: float = field(default=1e-5, validator=validators.ge(0))
    decay: Decay = field(default="none", validator=validators.in_(get_args(Decay)))
    save_freq: int = field(default=500, validator=validators.ge(1))
    merge_freq: int = field(default=1000, validator=validators.ge(1))
    merge_alg: MergeAlgorithm = field(default="ties", validator=validators.in_(get_args(MergeAlgorithm)))
    density: float = field(default=0.53, validator=[validators.gt(0), validators.le(1)])
    weights: float = field(default=1.0, validator=validators.gt(0))
    retrieve: bool = True
    replay: bool = False
    replay_low: float = field(default=5.0, validator=validators.ge(0))
    replay_high: float = field(default=20.0, validator=validators.ge(0))
    act: Act = field(default="phi", validator=validators.in_(get_args(Act)))
    long_prompts: LongPrompts = field(default="mean", validator=validators.in_(get_args(LongPrompts)))
    irrelevant_texts: int = field(default=1, validator=validators.ge(1))
    context_templates: tuple[str, ...] | None = field(default=None, validator=_templates)
    context_lengths: tuple[tuple[int, int], ...] = field(default=((5, 5), (10, 5)), validator=_lengths)
    context_start: tuple[str, ...] = field(
        default=("I", "You", "Because", "Yes", "Q: "), validator=validators.min_len(1)
    )
    fast: bool = True

    def __attrs_post_init__(self) -> None:
        if self.merge_freq % self.save_freq:
            raise ValueError("merge_freq must be a multiple of save_freq")
        if self.replay and not self.retrieve:
            raise ValueError("replay goes with retrieve")

    @property
    def merged_shards(self) -> int:
        """How many shards are merged at a time."""
        return self.merge_freq // self.save_freq

    @classmethod
    def for_depth(cls, shape: ModelShape) -> Mapping[str, Any]:
        """The layer in proportion to the depth, from the published settings."""
        return {"layer": min(round(_SHARE * shape.num_layers), shape.num_layers - 1)}
