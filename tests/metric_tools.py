"""Models whose every logit and word is known, and what a metric is told of an edit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from kedit_core.evaluation import SENTENCE, StopRule, TargetTokens
from kedit_core.plugins import Catalogue

Rows = Sequence[Sequence[float]]
ALONE = Catalogue.installed({"KEDIT_PLUGINS": "kedit-core"})
"""What is installed without the datasets' metrics: a test registers the one that it is about."""


def logits_for(probabilities: Mapping[str, float], words: Sequence[str]) -> list[float]:
    """One row of logits that gives these words these probabilities; the rest is shared by the others."""
    rest = 1 - sum(probabilities.values())
    others = len(words) - len(probabilities)
    return [math.log(probabilities.get(word, rest / others)) + 3.0 for word in words]


class HandMade:
    """Answers of a model over whole words: rows of logits by prompt, greedy answers and sampled texts by prompt."""

    def __init__(
        self,
        words: Sequence[str] = (),
        logits: Mapping[str, Rows] | None = None,
        said: Mapping[str, str] | None = None,
        written: Mapping[str, str] | None = None,
    ) -> None:
        self.words = list(words)
        self.logits, self.said, self.written = dict(logits or {}), dict(said or {}), dict(written or {})
        self.asked: list[tuple[Any, ...]] = []

    def _rows(self, prompt: str, target: str) -> tuple[torch.Tensor, list[int]]:
        ids = [self.words.index(word) for word in target.split()]
        return torch.tensor(self.logits[prompt][: len(ids)], dtype=torch.float64), ids

    def target_logprobs(self, pairs: Sequence[tuple[str, str]]) -> list[torch.Tensor]:
        self.asked.append(("pairs", *pairs))
        found = []
        for prompt, target in pairs:
            rows, ids = self._rows(prompt, target)
            found.append(torch.log_softmax(rows, -1)[range(len(ids)), ids].float())
        return found

    def target_tokens(self, pairs: Sequence[tuple[str, str]]) -> list[TargetTokens]:
        self.asked.append(("pairs", *pairs))
        found = []
        for prompt, target in pairs:
            rows, ids = self._rows(prompt, target)
            best = rows.argmax(-1).tolist()
            found.append(TargetTokens(predicted=tuple(best), target=tuple(ids), text=""))
        return found

    def generate(self, prompts: Sequence[str], *, rule: StopRule = SENTENCE, max_new_tokens: int = 50) -> list[str]:
        self.asked.append(("generate", *prompts))
        return [rule.cut(self.said[prompt]) for prompt in prompts]

    def sample(self, prompts: Sequence[str], *, total_tokens: int, k: int = 5, seed: int = 0) -> list[str]:
        self.asked.append(("sample", total_tokens, k, seed, *prompts))
        return [self.written[prompt] for prompt in prompts]


def told(*groups: str, requests: Sequence[Any] = (), scenario: str = "batch", **more: Any) -> Any:
    """What a metric reads of an EditContext; with these groups wanted."""
    defaults: dict[str, Any] = {
        "scenario": scenario,
        "stack": SimpleNamespace(patches=(SimpleNamespace(way="merged"),)),
        "requests": tuple(requests),
        "seed": 0,
        "resources": {},
        "tokenizer": SimpleNamespace(all_special_tokens=["</s>"]),
        "adapter": SimpleNamespace(is_encoder_decoder=False),
        "wants": lambda group: group in groups,
    }
    return SimpleNamespace(**{**defaults, **more})
