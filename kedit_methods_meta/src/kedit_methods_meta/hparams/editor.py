"""Settings that the editors of this family share. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from attrs import field, fields, frozen, validators

from kedit_core.hparams import HyperParams

Part: TypeAlias = Literal["mlp_in", "mlp_gate", "mlp_out", "attn_out"]

S = TypeVar("S", bound=HyperParams)

positive: Any = validators.gt(0)
not_negative: Any = validators.ge(0)
at_least_one: Any = validators.ge(1)


def one_of(known: Any) -> Any:
    """A validator for the values of a Literal."""
    return validators.in_(get_args(known))


def named_once(instance: Any, attribute: Any, value: Sequence[str]) -> None:
    """A validator: one part or more, each once."""
    if not value or len(set(value)) != len(value) or not set(value) <= set(get_args(Part)):
        raise ValueError(f"name one or more of {', '.join(get_args(Part))}, each once")


def part_of(settings: HyperParams, kind: type[S]) -> S:
    """Those of a training's settings that its editor keeps."""
    return kind(**{each.name: getattr(settings, each.name) for each in fields(kind)})


@frozen(kw_only=True, slots=False)  # slots would not mix with those of the settings of a training
class EditorSettings(HyperParams):
    """What an editor is, beside its numbers: kept in its ``state.json``, and set when it is trained.

    Attributes:
        parts: of the blocks: ``mlp_in`` (gate and up, where there are two), ``mlp_gate`` only the first of these,
            ``mlp_out``, ``attn_out``.
        layers, decoder_layers: the blocks; negative numbers count from the end. An encoder-decoder's ``layers`` are its
            encoder's, and ``decoder_layers`` None takes the same numbers in its decoder.
        rank: of the nets' layers, at most the width of their input.
        append_eos: whether an answer ends with the end-of-sequence token; None: in encoder-decoder models only.
    """

    parts: tuple[Part, ...] = field(default=("mlp_in", "mlp_out"), validator=named_once)
    layers: tuple[int, ...] = (-3, -2, -1)
    decoder_layers: tuple[int, ...] | None = None
    rank: int = field(default=1920, validator=at_least_one)
    append_eos: bool | None = None
