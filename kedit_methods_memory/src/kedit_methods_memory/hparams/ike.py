"""Settings of IKE and of plain retrieval in context. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

from attrs import field, frozen, validators

from kedit_core.hparams import HyperParams

Mode: TypeAlias = Literal["ike", "easyedit", "ice", "format"]
Storing: TypeAlias = Literal["inline", "by_hash"]

SENTENCE_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


def _some_positive(instance: Any, attribute: Any, value: tuple[int, ...]) -> None:
    if min(value) < 0 or sum(value) == 0:
        raise ValueError("parts of a ratio are 0 or more, and not all 0")


@frozen(kw_only=True)
class IkeContextHyperParams(HyperParams):
    """Settings of facts put before prompts, without demonstrations.

    Attributes:
        encoder: what compares prompts: the name of a sentence-transformers model on the Hub, or ``ngrams``, which is
            built in. The folder of a model is given as the resource ``encoder``, which wins.
        encoder_revision: of a name on the Hub.
        tau: a prompt whose best fact scores below this passes through as it is (cosine); None: every prompt gets its
            best fact, as in the paper.
        window: tokens that a prompt with its context may have; None for the model's positions.
        answer_tokens: how many of them are kept free for the answer.
    """

    encoder: str = field(default=SENTENCE_ENCODER, validator=validators.min_len(1))
    encoder_revision: str | None = None
    tau: float | None = field(default=None, validator=validators.optional(validators.ge(-1.0)))
    window: int | None = field(default=None, validator=validators.optional(validators.ge(2)))
    answer_tokens: int = field(default=50, validator=validators.ge(1))


@frozen(kw_only=True)
class IkeHyperParams(IkeContextHyperParams):
    """Settings of IKE.

    Attributes:
        mode: ``ike`` as published; ``easyedit``: the nearest demonstrations of whatever type, nearest first, without
            the fact's own copy (EasyEdit shows 16: set k=16 with it); ``ice``: the fact alone; ``format``:
            demonstrations without the fact, which shows what the format alone changes.
        k: demonstrations, at most; fewer where the window does not hold them.
        ratio: of copy : update : retain among them.
        neighbours: sub-keys of locality that retaining is shown on; all of a record's when it has none of these.
        clean_paraphrases: cut leading text off the demonstrations' paraphrases, as the original does for CounterFact.
        store_demonstrations: ``inline`` in the patch, or ``by_hash``: the patch is small, and needs the file
            (``--with demonstrations=FILE``) wherever it is applied.
    """

    mode: Mode = field(default="ike", validator=validators.in_(get_args(Mode)))
    k: int = field(default=32, validator=[validators.ge(1), validators.le(4096)])
    ratio: tuple[int, int, int] = field(default=(1, 3, 4), validator=_some_positive)
    neighbours: tuple[str, ...] = ("neighborhood",)
    clean_paraphrases: bool = False
    store_demonstrations: Storing = field(default="inline", validator=validators.in_(get_args(Storing)))
