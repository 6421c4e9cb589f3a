"""What a causal trace measures and how: kinds of states, noise, window. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

from attrs import field, frozen

from kedit_core.errors import InputError

Kind: TypeAlias = Literal["block", "mlp", "attn"]
Module: TypeAlias = Literal["mlp", "attn"]
Occurrence: TypeAlias = Literal["first", "last", "all"]
Law: TypeAlias = Literal["pooled", "fixed", "normal", "student", "uniform"]

KINDS: tuple[Kind, ...] = get_args(Kind)
MODULES: tuple[Module, ...] = get_args(Module)
OCCURRENCES: tuple[Occurrence, ...] = get_args(Occurrence)

_WINDOW = 10
_LETTERS: dict[str, Law] = {"s": "pooled", "m": "normal", "t": "student", "u": "uniform"}


@frozen
class NoiseRule:
    """A noise rule, read.

    Attributes:
        law: ``pooled`` (``s<f>``: f pooled standard deviations of the subjects' embeddings), ``fixed`` (a number),
            ``normal`` (``m``: mean and covariance of embeddings in text), ``student`` (``t<df>``), or ``uniform``
            (``u<x>``: within +-x).
        value: f, the number itself, 1, the degrees of freedom, or x.
    """

    law: Law
    value: float

    @classmethod
    def read(cls, text: str) -> NoiseRule:
        """Read ``s3``, ``s``, ``0.1``, ``m``, ``t8`` or ``u0.2``. Raises InputError for anything else."""
        law = _LETTERS.get(text[:1], "fixed")
        rest = text if law == "fixed" else text[1:]
        if (law == "pooled" and not rest) or (law == "normal" and not rest):
            return cls(law, 1.0)
        try:
            value = float(rest)
        except ValueError:
            value = math.nan
        if law == "normal" or not (math.isfinite(value) and value >= 0):
            raise InputError(
                f"{text!r} is no noise rule; write s3 (times the embeddings' standard deviation), a number such as "
                "0.1, u0.1 (uniform), m (normal, as embeddings in text) or t8 (Student's t)"
            )
        if law == "student" and value <= 2:
            raise InputError(f"{text!r}: Student's t has no variance at {value:g} degrees of freedom; take more than 2")
        return cls(law, value)


def _once(value: Any) -> Any:
    """Each name once, in the order given."""
    return tuple(dict.fromkeys((value,) if isinstance(value, str) else value))


def _among(allowed: tuple[str, ...]) -> Callable[[Any, Any, Any], None]:
    def check(_: Any, attribute: Any, value: Any) -> None:
        for each in value if isinstance(value, tuple) else (value,):
            if each not in allowed:
                raise InputError(f"{attribute.name} is {each!r}; choose among {', '.join(allowed)}")

    return check


def _positive(_: Any, attribute: Any, value: int | None) -> None:
    if value is not None and value < 1:
        raise InputError(f"{attribute.name} is {value}; give at least 1")


@frozen(kw_only=True)
class TraceSettings:
    """Settings of a causal trace (Meng et al. 2022, appendix B.1).

    Attributes:
        kinds: which states are restored: ``block`` (one residual state), ``mlp`` and ``attn`` (the module's outputs in
            a window of blocks).
        noise: the rule of the corruption; see :class:`NoiseRule`.
        samples: corrupted copies of the prompt that probabilities are averaged over.
        window: blocks restored together for ``mlp`` and ``attn``; None is the paper's 10, or a third of the blocks
            (rounded up) where that is fewer.
        seed: of the noise; all cells see the same noise.
        severed: also trace ``block`` with these modules held at their corrupted outputs (appendix B.2).
        replace: the noise takes the place of the embeddings instead of being added to them.
        occurrence: which occurrence of the subject is corrupted when it stands in the prompt more than once. A subject
            span that is given is the only one, unless this is ``all``.
    """

    kinds: tuple[Kind, ...] = field(default=KINDS, converter=_once, validator=_among(KINDS))
    noise: str = field(default="s3", converter=str)
    samples: int = field(default=10, validator=_positive)
    window: int | None = field(default=None, validator=_positive)
    seed: int = 1
    severed: tuple[Module, ...] = field(default=(), converter=_once, validator=_among(MODULES))
    replace: bool = False
    occurrence: Occurrence = field(default="first", validator=_among(OCCURRENCES))

    def __attrs_post_init__(self) -> None:
        NoiseRule.read(self.noise)
        if not self.kinds and not self.severed:
            raise InputError(f"there is nothing to trace; choose kinds among {', '.join(KINDS)}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"the seed of the noise is {self.seed}; give a whole number from 0 to 2**32 - 1")
        if self.severed and self.replace:
            raise InputError("a severed path is traced with noise that is added; leave replace out, or severed")

    @property
    def rule(self) -> NoiseRule:
        """The noise rule, read."""
        return NoiseRule.read(self.noise)

    def width(self, num_layers: int) -> int:
        """Blocks in a window, for a model of so many blocks."""
        return min(_WINDOW, math.ceil(num_layers / 3)) if self.window is None else self.window


def severed_kind(module: str) -> str:
    """Name of the table of ``block`` restored with these modules severed."""
    return f"block_without_{module}"
