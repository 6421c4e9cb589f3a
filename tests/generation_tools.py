"""Prompts, and the tiny models whose windows and attention make reading them hard."""

from __future__ import annotations

from typing import Any

import pytest

from kedit_core.testing.tiny import FAMILIES

TEXTS = (
    "The capital of Arvania is",
    "Mira Taldon",
    "The river Sorrel flows through Eskel, then through the town of",
    "Who wrote the book The Glass Orchard? It was",
    "I",
)
WINDOWS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "mistral-window": ("mistral", {"sliding_window": 4}),
    "gemma3-window": ("gemma3", {"sliding_window": 3}),
    "gpt_neo-window": ("gpt_neo", {"window_size": 3}),
    "gpt2-eager": ("gpt2", {"attn_implementation": "eager"}),
}
each_case = pytest.mark.parametrize("case", WINDOWS)


def setting(make_kit: Any, case: str) -> Any:
    family, over = WINDOWS[case]
    return make_kit(family, **over)
