"""Settings of knowledge neurons. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

from attrs import field, frozen, validators

from kedit_core.hparams import HyperParams

Grid: TypeAlias = Literal["right", "left", "inclusive"]
Neuron: TypeAlias = Literal["post", "pre"]
ThresholdRule: TypeAlias = Literal["adaptive", "absolute", "percentile"]
OldAnswer: TypeAlias = Literal["given", "predicted"]
Prompts: TypeAlias = Literal["bare", "rephrase"]
Change: TypeAlias = Literal["rewrite", "erase"]
LambdaRule: TypeAlias = Literal["fixed", "norm", "parity_causal"]
Embedding: TypeAlias = Literal["input", "lm_head"]

_ADAPTIVE_LIMIT = 1.0
_PERCENT = 100.0


def _few_slots(instance: Any, attribute: Any, value: tuple[str, ...]) -> None:
    for prompt in value:
        if not prompt.strip() or prompt.count("{}") > 1:
            raise ValueError(f"negative prompt {prompt!r} must be some text with '{{}}' (the subject) at most once")


@frozen(kw_only=True)
class KnHyperParams(HyperParams):
    """Settings of KN.

    Attributes:
        steps: points of the integral over a block's activations.
        grid: where they lie: ``right`` k/S for k = 1..S (the paper), ``left`` for k = 0..S-1 (the authors' code),
            ``inclusive`` evenly from 0 to 1 (later code; a single point is then 0).
        neuron: ``post``, the input of the down-projection, or ``pre``, the output of the first (gate) projection.
        threshold_rule: a neuron is found by a prompt when its score is above ``threshold`` times the largest
            (``adaptive``), above ``threshold`` (``absolute``), or above that percentile of all scores (``percentile``).
        threshold: see ``threshold_rule``.
        threshold_inclusive: a score that is just the threshold passes too (as in the authors' code).
        old_answer: ``given``, the request's ground truth where it has one, else what the model predicts;
            ``predicted`` always what it predicts (greedily, as many tokens as the new answer has).
        prompts: ``bare``, the request's prompt, or ``rephrase``, its rephrase prompts beside it (these are then no
            measure of generalization any more).
        refine_share: with several prompts, a neuron is kept when more than this share of them found it.
        refine_min_prompts: with several prompts, at least this many must have found it, or all where there are fewer (3
            in the authors' code).
        adapt_rounds: how often that share may move by 0.05 until facts of the same relation have 2 to 5 neurons on
            average; 6 in the authors' code, 0 to leave it.
        max_frequency: neurons found for more than this share of the edit's facts of the same relation are left alone
            (0.1 in the authors' code); None for no limit.
        negative_prompts: neurons that these find (with what the model predicts there) are left alone; ``{}`` stands for
            the subject.
        change: ``rewrite`` takes the old answer's embedding off a neuron's column and adds the new one's; ``erase``
            sets the column to zero.
        lambda_rule: ``fixed``, mean embeddings times lambda; ``norm``, scaled to the column's own norm (the authors);
            ``parity_causal``, as later code for decoders does it: -2 for one predicted token, else -1 each, +1 for each
            new token.
        lambda_old, lambda_new: factors of the two embeddings; None for the rule's own, 2 (``fixed``) or 1 (``norm``).
        embedding: rows of the ``input`` embedding, or of the ``lm_head``.
        follow_sign: turn the change of a column around where its neuron's activation is negative, so that all selected
            neurons push the same way. Not in the paper, whose model has few such; in gated MLPs half are.
        fast: False runs the whole model for every point of every block; same result, many times slower.
    """

    steps: int = field(default=20, validator=validators.ge(1))
    grid: Grid = field(default="right", validator=validators.in_(get_args(Grid)))
    neuron: Neuron = field(default="post", validator=validators.in_(get_args(Neuron)))
    threshold_rule: ThresholdRule = field(default="adaptive", validator=validators.in_(get_args(ThresholdRule)))
    threshold: float = field(default=0.2, validator=validators.ge(0))
    threshold_inclusive: bool = False
    old_answer: OldAnswer = field(default="given", validator=validators.in_(get_args(OldAnswer)))
    prompts: Prompts = field(default="bare", validator=validators.in_(get_args(Prompts)))
    refine_share: float = field(default=0.5, validator=[validators.ge(0), validators.lt(1)])
    refine_min_prompts: int = field(default=1, validator=validators.ge(1))
    adapt_rounds: int = field(default=0, validator=validators.ge(0))
    max_frequency: float | None = field(
        default=None, validator=validators.optional([validators.gt(0.0), validators.le(1.0)])
    )
    negative_prompts: tuple[str, ...] = field(default=(), validator=_few_slots)
    change: Change = field(default="rewrite", validator=validators.in_(get_args(Change)))
    lambda_rule: LambdaRule = field(default="fixed", validator=validators.in_(get_args(LambdaRule)))
    lambda_old: float | None = field(default=None, validator=validators.optional(validators.ge(0.0)))
    lambda_new: float | None = field(default=None, validator=validators.optional(validators.ge(0.0)))
    embedding: Embedding = field(default="input", validator=validators.in_(get_args(Embedding)))
    follow_sign: bool = False
    fast: bool = True

    def __attrs_post_init__(self) -> None:
        limit = {"adaptive": _ADAPTIVE_LIMIT, "percentile": _PERCENT}.get(self.threshold_rule)
        if limit is not None and self.threshold >= limit:
            raise ValueError(f"threshold must be below {limit:g} with threshold_rule {self.threshold_rule!r}")
        given = self.lambda_old is not None or self.lambda_new is not None
        if given and (self.lambda_rule == "parity_causal" or self.change == "erase"):
            raise ValueError("lambda_old and lambda_new go with lambda_rule 'fixed' or 'norm', and with no erasing")
        if self.follow_sign and (self.neuron == "pre" or self.change == "erase"):
            raise ValueError("follow_sign needs the activation that a rewritten column is multiplied by: neuron 'post'")
        if self.refine_min_prompts > 1 and self.prompts == "bare":
            raise ValueError("refine_min_prompts counts prompts, so it needs several: set prompts to 'rephrase'")
        if self.adapt_rounds and self.prompts == "bare":
            raise ValueError("adapt_rounds moves the share of prompts, so it needs several: set prompts to 'rephrase'")
