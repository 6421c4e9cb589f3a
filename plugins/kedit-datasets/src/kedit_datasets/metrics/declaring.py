"""How a group declares its metrics."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from kedit_core.contract import MetricInfo


def on_request(
    group: str, told: Mapping[str, str], *, lower: Collection[str] = (), neither: Collection[str] = ()
) -> list[MetricInfo]:
    """Metrics of a group that is measured when asked for.

    Args:
        told: name -> what it is, in a few words.
        lower, neither: names of which a low value is the good one, or no end is; of the others a high one is.
    """

    def better(name: str) -> Literal["higher", "lower"] | None:
        return None if name in neither else "lower" if name in lower else "higher"

    return [
        MetricInfo(name=f"{group}.{name}", summary=text, on_request=True, better=better(name))
        for name, text in told.items()
    ]
