"""How sure a mean of paired differences is: the percentile bootstrap, and a test by flipping signs.

Both look at the cases as a sample of those that might have been asked. They say nothing of what another order of edits
or another seed would have given.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_EXACT = 12  # up to so many cases every pattern of signs is tried
_AT_ONCE = 2_000_000  # numbers of one block of resamples


def bootstrap_intervals(differences: Array, *, samples: int, seed: int, level: float) -> tuple[Array, Array]:
    """Percentile intervals of column means, cases drawn again with replacement (Efron and Tibshirani 1993, ch. 13).

    Args:
        differences: [cases, columns], two cases or more; a row is drawn as a whole.
        samples: how often the cases are drawn.
        seed: everything random follows from it and the number of cases.
        level: share of the resampled means inside an interval, e.g. 0.95.

    Returns: lower and upper ends, each [columns].
    """
    cases = len(differences)
    random = np.random.default_rng([seed, cases])
    means = np.empty((samples, differences.shape[1]))
    for block in _blocks(samples, cases):
        size = block.stop - block.start
        drawn = random.integers(0, cases, size=(size, cases)) + cases * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * cases).reshape(size, cases)
        means[block] = counts.astype(np.float64) @ differences / cases
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def sign_flip_p(differences: Array, *, samples: int, seed: int) -> Array:
    """Two-sided p-values of column means being 0: how often means as far from 0 come up when signs are by chance.

    All patterns of signs are tried for up to 12 cases; else ``samples`` random ones, with the observed one among them,
    so that no p is 0 (Phipson and Smyth 2010).

    Args:
        differences: [cases, columns].

    Returns: [columns].
    """
    cases = len(differences)
    observed = np.abs(differences.sum(axis=0))
    least = observed - 1e-9 * np.abs(differences).sum(axis=0)  # sums that differ by rounding only are as far
    if cases <= _EXACT:
        patterns = 1.0 - 2.0 * ((np.arange(2**cases)[:, None] >> np.arange(cases)) & 1)
        exact: Array = (np.abs(patterns @ differences) >= least).mean(axis=0)
        return exact
    random = np.random.default_rng([seed, cases])
    as_far = np.ones(differences.shape[1])
    for block in _blocks(samples, cases):
        signs = 1.0 - 2.0 * random.integers(0, 2, size=(block.stop - block.start, cases))
        as_far += (np.abs(signs @ differences) >= least).sum(axis=0)
    found: Array = as_far / (samples + 1)
    return found


def _blocks(samples: int, cases: int) -> Iterator[slice]:
    size = max(1, _AT_ONCE // cases)
    for start in range(0, samples, size):
        yield slice(start, min(start + size, samples))
