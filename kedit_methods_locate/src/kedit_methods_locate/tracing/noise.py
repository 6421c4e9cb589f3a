"""The noise that corrupts a subject's embeddings, drawn as the paper's code draws it (numpy's RandomState)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from kedit_core.editing import EditContext
from kedit_core.errors import InputError
from kedit_core.forward import ForwardTools, evaluating
from kedit_methods_locate.stats import Corpus, DocumentRows
from kedit_methods_locate.tracing.settings import NoiseRule, TraceSettings

Array: TypeAlias = NDArray[np.float64]

_DOCUMENTS = 1000  # whose embeddings the rules m and t follow
_MAX_LEN = 1024
_CHI_SQUARE_SEED = 2


@frozen(eq=False)
class Noise:
    """A noise rule made concrete for one model and one list of facts.

    Attributes:
        rule: as it was written (``s3``).
        scale: nu, by which standard draws are multiplied; None for the rules ``m`` and ``t``.
        seed, samples: of the draws.
        replace: whether it takes the place of embeddings.
        mean, factor: ``[d]`` and ``[d, d]`` of the rules ``m`` and ``t``: x -> mean + factor x.
    """

    rule: str
    scale: float | None
    seed: int
    samples: int
    replace: bool = False
    mean: Array | None = None
    factor: Array | None = None

    def draw(self, tokens: int, width: int) -> Array:
        """``[samples, tokens, width]``: the same numbers at every call, from a generator made anew."""
        state = np.random.RandomState(self.seed)
        shape = (self.samples, tokens, width)
        rule = NoiseRule.read(self.rule)
        scale = 1.0 if self.scale is None else self.scale
        if rule.law == "uniform":
            return np.asarray(state.uniform(-1, 1, shape) * scale)
        standard = state.randn(*shape)
        if self.mean is None or self.factor is None:
            return np.asarray(standard * scale)
        normal = standard @ self.factor.T + self.mean
        if rule.law == "normal":
            return np.asarray(normal)
        chi = np.random.RandomState(_CHI_SQUARE_SEED).chisquare(rule.value, shape[:2])
        return np.asarray(normal * np.sqrt((rule.value - 2) / chi)[..., None])

    def to_dict(self) -> dict[str, Any]:
        """What a record says of it."""
        return {
            "rule": self.rule,
            "scale": self.scale,
            "seed": self.seed,
            "samples": self.samples,
            "replace": self.replace,
        }


def resolve_noise(
    context: EditContext, settings: TraceSettings, subjects: Sequence[str], corpus: Corpus | None = None
) -> Noise:
    """The noise of ``settings`` for this model.

    Args:
        subjects: of all facts that are compared; the rule ``s`` pools their embeddings (special tokens left out).
        corpus: text whose embeddings the rules ``m`` and ``t`` follow: 1000 documents of it.

    Raises:
        InputError: no subject, or no text for a rule that needs it.
    """
    rule = settings.rule
    mean = factor = None
    scale: float | None = rule.value
    if rule.law == "pooled":
        scale = rule.value * pooled_deviation(context, subjects)
    elif rule.law in ("normal", "student"):
        if corpus is None:
            raise InputError(f"the noise rule {settings.noise!r} follows embeddings in text; give a text with --corpus")
        scale = None
        mean, factor = _normal(context, corpus)
    return Noise(settings.noise, scale, settings.seed, settings.samples, settings.replace, mean, factor)


def pooled_deviation(context: EditContext, subjects: Sequence[str]) -> float:
    """Standard deviation (unbiased) of all scalar entries of the subjects' token embeddings.

    Each subject is tokenised alone, and special tokens are left out.
    """
    special = set(context.tokenizer.all_special_ids)
    if not all(subject.strip() for subject in subjects):
        raise InputError("a subject is empty; give its words")
    alone = (context.tokens.prompt(subject.strip()).ids for subject in subjects)
    ids = [token for each in alone for token in each if token not in special]
    if not ids:
        raise InputError("the noise rule s is taken from subjects, and there is none; give facts with subjects")
    return float(embedded(context.forward, ids).std())


def embedded(forward: ForwardTools, ids: Sequence[int]) -> Tensor:
    """Outputs of the token embeddings ``[n, d]`` in float64."""
    module = forward.view.embeddings
    with torch.no_grad(), evaluating(module):
        out: Tensor = module(torch.tensor([list(ids)], device=forward.device))
    return out[0].detach().to("cpu", torch.float64)


def embedding_width(forward: ForwardTools) -> int:
    """Width of the token embeddings; narrower than the residual stream in some models."""
    return int(embedded(forward, [forward.boundary.pad_id]).shape[-1])


def _normal(context: EditContext, corpus: Corpus) -> tuple[Array, Array]:
    """Mean and V diag(sqrt s) of embeddings in text, the covariance being V diag(s) V^T; counted by token."""
    longest = min(_MAX_LEN, context.adapter.max_positions or _MAX_LEN)
    rows = DocumentRows(corpus, context.tokens, _DOCUMENTS, longest, seed=1)
    special = set(context.tokenizer.all_special_ids)
    counts: dict[int, int] = {}
    for row in rows.chunk(0, rows.total):
        for token in row:
            if token not in special:
                counts[token] = counts.get(token, 0) + 1
    total = sum(counts.values())
    if total < 2:
        raise InputError("the text for the noise has fewer than two tokens; give more with --corpus")
    vectors = embedded(context.forward, list(counts)).numpy()
    weights = np.array(list(counts.values()), dtype=np.float64)
    mean = weights @ vectors / total
    centred = vectors - mean
    covariance = (centred * weights[:, None]).T @ centred / (total - 1)
    basis, spread, _ = np.linalg.svd(covariance, hermitian=True)
    return mean, basis * np.sqrt(spread)
