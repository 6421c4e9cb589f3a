"""A model whose every word and log-probability is known, for metrics that read answers; words are its tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from kedit_core.contract import MetricResult
from kedit_core.evaluation import SENTENCE, Continuation, StopRule, Tag
from kedit_core.evaluation.aggregate import combine_results
from kedit_core.requests import EditRequest

Pair = tuple[str, str]


class Scripted:
    """Answers by prompt, and log-probabilities and divergences by (prompt, target).

    ``asked`` are (kind, question) in the order asked. What the script lacks is ``otherwise``, or a KeyError.
    """

    def __init__(
        self,
        said: Mapping[str, str] | None = None,
        *,
        logprobs: Mapping[Pair, Sequence[float]] | None = None,
        divergences: Mapping[Pair, Sequence[float] | None] | None = None,
        otherwise: str | None = None,
        is_base: bool = False,
    ) -> None:
        self.said, self.otherwise, self.is_base = dict(said or {}), otherwise, is_base
        self.logprobs, self.divergences = dict(logprobs or {}), dict(divergences or {})
        self.asked: list[tuple[Any, Any]] = []

    def _raw(self, kind: Any, prompts: Sequence[str]) -> list[str]:
        self.asked += [(kind, prompt) for prompt in prompts]
        return [self.said[p] if p in self.said or self.otherwise is None else self.otherwise for p in prompts]

    def generate(self, prompts: Sequence[str], *, rule: StopRule = SENTENCE, max_new_tokens: int = 50) -> list[str]:
        return [rule.cut(text) for text in self._raw(("generate", max_new_tokens), prompts)]

    def raw_generate(self, prompts: Sequence[str], max_new_tokens: int = 50) -> list[str]:
        return self._raw(("raw", max_new_tokens), prompts)

    def continuations(self, prompts: Sequence[str], max_new_tokens: int = 50) -> list[Continuation]:
        texts = self._raw(("continuations", max_new_tokens), prompts)
        return [Continuation(text=t, tokens=tuple(int.from_bytes(w.encode()) for w in t.split())) for t in texts]

    def target_logprobs(self, pairs: Sequence[Pair]) -> list[torch.Tensor]:
        self.asked += [("logprobs", pair) for pair in pairs]
        return [torch.tensor(self.logprobs[pair]) for pair in pairs]

    def target_divergences(self, pairs: Sequence[Pair]) -> list[torch.Tensor | None]:
        self.asked += [("divergences", pair) for pair in pairs]
        found = [self.divergences[pair] for pair in pairs]
        return [None if each is None else torch.tensor(each) for each in found]


Measure = Callable[[Sequence[EditRequest]], Mapping[str, MetricResult]]


def same_when_alone(measure: Measure, requests: Sequence[EditRequest]) -> None:
    """Cases that are measured alone and combined give what they give when measured together."""
    together = measure(requests)
    assert together
    cases: dict[str | None, list[EditRequest]] = {}
    for request in requests:
        cases.setdefault(request.case_id, []).append(request)
    apart = [measure(case) for case in cases.values()]
    for name, whole in together.items():
        combined = combine_results(name, [each[name] for each in apart if name in each])
        assert combined == whole, name
        assert Tag.parse(whole.tag).n <= len(requests)


def read_ahead_is_enough(plugin: Any, context: Any, requests: Sequence[EditRequest], *answers: Scripted) -> None:
    """All that ``evaluate`` asks of these answers (base, edited) is asked ahead; divergences cannot be."""
    for one in answers:
        plugin.read_ahead(context=context, requests=requests, answers=one)
    base, edited = answers
    ahead = [set(one.asked) for one in answers]
    assert all(ahead)
    base.asked.clear(), edited.asked.clear()
    plugin.evaluate(context=context, requests=requests, base=base, edited=edited)
    for one, known in zip(answers, ahead, strict=True):
        assert {each for each in one.asked if each[0] != "divergences"} <= known
