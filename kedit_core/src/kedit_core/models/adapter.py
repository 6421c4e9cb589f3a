"""What is known of an architecture, as data: names of modules and config attributes. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

from attrs import field, frozen

Layout: TypeAlias = Literal["out_in", "in_out", "as_stored"]


@frozen
class When:
    """A fact that depends on the model's config: true where its attribute has this value."""

    attribute: str
    value: object = True

    def holds(self, config: Any) -> bool:
        """Whether it is so for this config; an attribute that is not there counts as None."""
        return bool(getattr(config, self.attribute, None) == self.value)


def holds(fact: bool | When, config: Any) -> bool:
    """Whether a fact of an adapter is so for this config."""
    return fact.holds(config) if isinstance(fact, When) else fact


def _names(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _in_blocks(adapter: ModelAdapter, attribute: Any, value: Any) -> None:
    """Templates hold one ``{}``, for the block's number, and lie inside of the block."""
    for template in _names(value or ()):
        inside = attribute.name in ("block", "decoder_block") or template.startswith(f"{adapter.block}.")
        if template.count("{}") != 1 or not inside:
            raise ValueError(
                f"{attribute.name} of the adapter for {', '.join(adapter.architectures)} is {template!r}; it needs one "
                f"{{}} for the block's number and must lie inside of its block {adapter.block!r}"
            )


def _some(adapter: ModelAdapter, attribute: Any, value: tuple[str, ...]) -> None:
    if not value:
        raise ValueError(f"{attribute.name} of an adapter is empty; name at least one")


@frozen(kw_only=True)
class ModelAdapter:
    """Where things are in the models of an architecture.

    Names are dotted, relative to the model; those inside of a block have ``{}`` for the block's number, counted from 0.
    Layouts and sizes of weights are not said here: they are read from the modules themselves.

    Attributes:
        architectures: names of the model classes (``LlamaForCausalLM``) this holds for.
        only_if: it holds only where the config is so (gated and plain T5 are one class), or None.
        block: a transformer block of the stack that is edited: the only one, or the encoder's where there are two.
        mlp: the module whose output is what the MLP gives, before any norm behind it and before it is added to the
            residual stream: ``[batch, seq, hidden]``, equal to the output of ``mlp_out``. Where a block has no such
            module (OPT), or it adds the residual itself (Bloom), it is ``mlp_out``.
        mlp_in: the projections from hidden to inner size, in the order they are run: one, or gate and up.
        mlp_out: the projection back from inner to hidden size; its input is ROME's key.
        attn: the attention; its output, or the first of its outputs, is ``[batch, seq, hidden]``.
        attn_out: its output projection.
        embeddings: the token embeddings that are run in the edited stack.
        position_embeddings: learned absolute positions, or None.
        final_norm: what is applied between the last block and the head, in this order. One that the model has as None
            (OPT's ``project_out``) is left out.
        lm_head: from hidden size to the vocabulary.
        decoder_block: the blocks whose last output goes to ``final_norm``, where they are not ``block``.
        parallel: the MLP does not see what the attention of its own block wrote.
        norm_after_mlp: a norm between the MLP's output and the block's output: on the MLP's output before it is added
            (Gemma 2), or on the sum (OPT-350m). So a vector added to the MLP's output is not the same vector added to
            the block's output.
        norm_after_mlp_if: when that norm is there, or there and run behind the MLP.
        mlp_rescaled: the block adds a multiple of the MLP's output (Granite); likewise.
        rescale_hidden: the input of the head is multiplied by hidden_size ** -0.5 (T5 with tied embeddings).
        logit_multiplier, logit_divisor, logit_softcap: config attributes whose value, when it is not None, the logits
            are multiplied by, divided by, or softly capped at (c * tanh(logits / c)), in this order.
        num_layers, hidden_size, max_positions: config attributes with the sizes.
        cache_argument: name under which a block is given the KV cache.
        distribution: who provides this adapter; whoever collects adapters fills it in, authors need not.
    """

    architectures: tuple[str, ...] = field(converter=_names, validator=_some)
    only_if: When | None = None
    block: str = field(validator=_in_blocks)
    mlp: str = field(validator=_in_blocks)
    mlp_in: tuple[str, ...] = field(converter=_names, validator=[_some, _in_blocks])
    mlp_out: str = field(validator=_in_blocks)
    attn: str = field(validator=_in_blocks)
    attn_out: str = field(validator=_in_blocks)
    embeddings: str
    position_embeddings: str | None = None
    final_norm: tuple[str, ...] = field(converter=_names)
    lm_head: str = "lm_head"
    decoder_block: str | None = field(default=None, validator=_in_blocks)
    parallel: bool | When = False
    norm_after_mlp: str | None = field(default=None, validator=_in_blocks)
    norm_after_mlp_if: bool | When = True
    mlp_rescaled: bool | When = False
    rescale_hidden: bool | When = False
    logit_multiplier: str | None = None
    logit_divisor: str | None = None
    logit_softcap: str | None = None
    num_layers: str = "num_hidden_layers"
    hidden_size: str = "hidden_size"
    max_positions: str = "max_position_embeddings"
    cache_argument: str = "past_key_values"
    distribution: str = field(default="", eq=False, repr=False)

    @property
    def encoder_decoder(self) -> bool:
        """Whether there are two stacks; the encoder's blocks are then the edited ones."""
        return self.decoder_block is not None
