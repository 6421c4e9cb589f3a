"""From scores to neurons: thresholds, what several prompts agree on, and what other facts share.

Dai et al. 2022, section 3.2 (specification: KN, section 3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from kedit_core.requests import EditRequest
from kedit_methods_locate.hparams.kn import ThresholdRule

NeuronId: TypeAlias = tuple[int, int]
Neurons: TypeAlias = frozenset[NeuronId]

_ADAPT_BY = 0.05
_WANTED = (2, 5)  # neurons a fact, on average
_RELATION_KEYS = ("relation", "relation_id")


def coarse(
    scores: Tensor, rule: ThresholdRule = "adaptive", threshold: float = 0.2, *, inclusive: bool = False
) -> Neurons:
    """The neurons ``(block, index)`` of one prompt's ``scores`` ``[blocks, neurons]`` above the threshold.

    With ``inclusive`` those that are just at it, too. A score that is not positive never passes, and a table with NaN
    or infinity has no neurons.
    """
    largest = float(scores.max())
    if not bool(torch.isfinite(scores).all()) or largest <= 0:
        return frozenset()
    if rule == "percentile":
        flat = scores.flatten()
        # kthvalue, since quantile has a limit of elements
        level = float(flat.kthvalue(max(1, round(threshold / 100 * flat.numel()))).values)
    else:
        level = threshold * largest if rule == "adaptive" else threshold
    passes = scores >= level if inclusive else scores > level
    blocks, indices = torch.where(passes & (scores > 0))
    return frozenset(zip(blocks.tolist(), indices.tolist(), strict=True))


def refined(sets: Sequence[Neurons], share: float, least: int = 1) -> Neurons:
    """Neurons of more than ``share`` of the prompts' sets, and of at least ``least`` (all of them, where there are
    fewer); with a share of 0 and 1 those of any prompt."""
    counts = Counter(neuron for each in sets for neuron in each)
    wanted = min(least, len(sets))
    return frozenset(neuron for neuron, count in counts.items() if count > share * len(sets) and count >= wanted)


def adapted_share(facts: Sequence[Sequence[Neurons]], share: float, rounds: int, least: int = 1) -> float:
    """The share moved by 0.05 at most ``rounds`` times, until the facts have 2 to 5 neurons on average.

    ``facts`` has the sets of each fact's prompts, ``least`` is that of :func:`refined`. The share stays within 0 and 1.
    """
    for _ in range(rounds):
        mean = sum(len(refined(sets, share, least)) for sets in facts) / len(facts)
        if _WANTED[0] <= mean <= _WANTED[1]:
            break
        moved = share + (_ADAPT_BY if mean > _WANTED[1] else -_ADAPT_BY)
        share = round(min(max(moved, 0.0), 1 - _ADAPT_BY), 10)
    return share


def too_common(own: Neurons, others: Collection[Neurons], limit: float) -> Neurons:
    """Those of ``own`` found for more than ``limit`` of the facts of the relation; the edited one counts twice."""
    counts = Counter(neuron for each in others for neuron in each)
    total = len(others) + 2
    return frozenset(neuron for neuron in own if counts[neuron] + 2 > limit * total)


def enough(others: int, limit: float) -> bool:
    """Whether there are so many other facts that a neuron of the edited one alone is not too common."""
    return limit * (others + 2) >= 2


def relation(request: EditRequest) -> str:
    """What facts of the same relation have in common: ``meta["relation"]``, else the prompt without its subject."""
    for key in _RELATION_KEYS:
        if request.meta.get(key) is not None:
            return str(request.meta[key])
    start, end = request.subject_span or (0, 0)
    return f"{request.prompt[:start]}{{}}{request.prompt[end:]}" if end else request.prompt
