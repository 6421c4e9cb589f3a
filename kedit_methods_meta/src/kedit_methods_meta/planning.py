"""What plans of this family's methods reckon with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from kedit_methods_meta.places import Place


def seconds_of(work: Callable[[], object]) -> float:
    """How long some work takes, the second time."""
    work()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def delta_bytes(places: Sequence[Place], rows: Mapping[str, int]) -> int:
    """What the changes of these places take in a patch, in float32: as factors, or whole where that is less.

    rows: of each, by name of weight.
    """
    return sum(4 * min(rows[place.name] * sum(place.shape), place.width * place.out) for place in places)
