"""Settings of GRACE. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

from attrs import field, frozen, validators

from kedit_core.hparams import HyperParams, ModelShape

Part: TypeAlias = Literal["mlp_out", "mlp_in", "attn_out"]
Replacement: TypeAlias = Literal["replace_last", "replace_prompt", "replace_all"]
ValueInit: TypeAlias = Literal["cold", "warm"]
Expand: TypeAlias = Literal["coverage", "moving_average"]
DuplicatePolicy: TypeAlias = Literal["overwrite", "original"]
Compat: TypeAlias = Literal["none", "original", "easyedit"]

# Codebook's layer as a share of the depth, from the published settings
_LAYER_SHARE: Mapping[str, float] = MappingProxyType(
    {
        "GPT2LMHeadModel": 35 / 48,
        "GPTJForCausalLM": 25 / 28,
        "Qwen2ForCausalLM": 18 / 28,
        "T5ForConditionalGeneration": 0.5,
    }
)
_USUAL_SHARE = 27 / 32
_LEAST_RADIUS = 1e-4  # the same prompt in another batch lies about as far away


@frozen(kw_only=True)
class GraceHyperParams(HyperParams):
    """Settings of GRACE.

    Attributes:
        layer: block whose projection gets the codebook (an encoder-decoder's encoder).
        part: which of its projections: the MLP's last (``mlp_out``), the MLP's first (``mlp_in``, where it is one
            module), or the attention's output projection.
        eps0: radius of a new key, in units of the projection's input; at least 1e-4.
        edit_lr: Adam's rate for the values.
        n_iter: steps of each value.
        replacement: where a value stands for the projection's output: at the prompt's last token, at all tokens before
            it, or at all tokens.
        value_init: a new value begins at random in [0, 1) (``cold``) or as the output it will replace (``warm``).
        expand: a new prompt with the answer of a key nearby widens its ball (``coverage``), or also moves its key half
            way (``moving_average``).
        duplicate_policy: the same prompt with a new answer overwrites the old one, or (``original``) splits the key's
            ball as published, after which the new answer is never given.
        compat: also do as the authors' code (``original``: the query is taken one token late, answers are compared by
            the mean of their ids) or EasyEdit's (``easyedit``: each written token asks again, keys are held against
            each other's answers) does; for comparisons only.
        fast: train values of different keys together, through the blocks above the codebook only; False trains them one
            by one with whole passes: the same up to rounding, slower.
    """

    layer: int = field(validator=validators.ge(0))
    part: Part = field(default="mlp_out", validator=validators.in_(get_args(Part)))
    eps0: float = field(default=1.0, validator=validators.ge(_LEAST_RADIUS))
    edit_lr: float = field(default=1.0, validator=validators.gt(0))
    n_iter: int = field(default=100, validator=validators.ge(1))
    replacement: Replacement = field(default="replace_last", validator=validators.in_(get_args(Replacement)))
    value_init: ValueInit = field(default="cold", validator=validators.in_(get_args(ValueInit)))
    expand: Expand = field(default="coverage", validator=validators.in_(get_args(Expand)))
    duplicate_policy: DuplicatePolicy = field(default="overwrite", validator=validators.in_(get_args(DuplicatePolicy)))
    compat: Compat = field(default="none", validator=validators.in_(get_args(Compat)))
    fast: bool = True

    @classmethod
    def for_depth(cls, shape: ModelShape) -> Mapping[str, Any]:
        """The layer in proportion to the depth, from the published settings of the nearest architecture."""
        share = _LAYER_SHARE.get(shape.architecture, _USUAL_SHARE)
        return {"layer": min(max(round(share * shape.num_layers), 0), shape.num_layers - 1)}
