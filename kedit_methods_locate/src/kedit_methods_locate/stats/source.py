"""Which text a statistic is collected from: a part of a corpus, or text of the model's own."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from kedit_core.editing import EditContext
from kedit_core.models import ModelView
from kedit_methods_locate.hparams import LocateHyperParams
from kedit_methods_locate.hparams.spread import Projection
from kedit_methods_locate.stats.corpus import Corpus, DocumentRows, IdRows, Rows
from kedit_methods_locate.stats.fingerprint import CODE_VERSION, tokenizer_digest, weights_digest
from kedit_methods_locate.stats.sample import sample_rows
from kedit_methods_locate.stats.statistic import TOKENS_PER_WIDTH

_POSITIONS = 2048  # tokens of a document when the model has more positions, as in the papers' code


@frozen(kw_only=True)
class Sample:
    """Which part of a corpus a statistic is taken from.

    Attributes:
        documents: at most so many, chosen by ``seed``.
        tokens: stop when so many are reached; None for all of the documents.
        max_len: tokens of a document that are read; None for the model's positions, at most 2048.
        skip_first_token: leave the first token of each document out.
    """

    documents: int = 100_000
    tokens: int | None = None
    max_len: int | None = None
    seed: int = 1
    skip_first_token: bool = False

    @classmethod
    def of(cls, hparams: LocateHyperParams) -> Sample:
        """The sample that a method's settings ask for."""
        return cls(
            documents=hparams.mom2_documents,
            max_len=hparams.mom2_max_len,
            seed=hparams.mom2_seed,
            skip_first_token=hparams.mom2_skip_first_token,
        )


@frozen(kw_only=True)
class Source:
    """What statistics are collected from: a corpus, or the model's own text when ``corpus`` is None.

    ``part`` is the projection whose inputs are taken: the MLP's, or the attention's (PMET can edit these too).
    """

    sample: Sample = field(factory=Sample)
    corpus: Corpus | None = None
    part: Projection = "mlp_out"

    def fields(self, context: EditContext, layer: int) -> dict[str, Any]:
        """All that the statistic of ``layer`` depends on; its key is the digest of this."""
        fields = {
            "code": CODE_VERSION,
            "architecture": type(context.model).__name__,
            "layer": layer,
            "site": site_name(self.part),
            "weights": weights_digest(context, layer),
            "tokenizer": tokenizer_digest(context.tokenizer),
            "skip_first_token": self.sample.skip_first_token,
            "seed": self.sample.seed,
        }
        if self.corpus is None:
            # what the model writes depends on all of its weights
            revision = weights_digest(context)
            return {**fields, "corpus": {"source": "sampled", "revision": revision}, "tokens": self._wanted(context)}
        return {
            **fields,
            "corpus": dict(self.corpus.identity),
            "documents": self.sample.documents,
            "tokens": self.sample.tokens,
            "max_len": longest(context, self.sample),
        }

    def rows(self, context: EditContext) -> Rows:
        """The token rows; text of the model's own is written now."""
        if self.corpus is not None:
            return DocumentRows(
                self.corpus, context.tokens, self.sample.documents, longest(context, self.sample), self.sample.seed
            )
        return IdRows(sample_rows(context, self._wanted(context), self.sample.seed, self.sample.skip_first_token))

    def _wanted(self, context: EditContext) -> int:
        widest = max(context.adapter.mlp_size(layer) for layer in range(context.adapter.num_layers))
        return self.sample.tokens or TOKENS_PER_WIDTH * widest


def longest(context: EditContext, sample: Sample) -> int:
    """Tokens of a document that are read."""
    return sample.max_len or min(context.adapter.max_positions or _POSITIONS, _POSITIONS)


def site_name(part: Projection) -> str:
    """How a statistic's record calls the place that its keys were read at."""
    return f"{part}.input"


def width_of(view: ModelView, layer: int, part: Projection) -> int:
    """Number of components of a projection's input."""
    return view.mlp_size(layer) if part == "mlp_out" else view.attn_size(layer)
