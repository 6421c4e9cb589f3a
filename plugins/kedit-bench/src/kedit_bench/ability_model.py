"""A model as lm-evaluation-harness asks it: the one in memory, read through every patch on it.

The harness's own wrapper (HFLM) runs a bare model, so what decides prompt by prompt would not act: routers, which put
text before a prompt or send it to another model, and module operations that must know where prompts end. It also ties
the model's weights again and may give the tokenizer another padding token. This one reads through kedit's own scoring
and generation instead, whatever is on the model, so that all methods are measured alike. It takes texts apart as HFLM
does, and where the patches (or none) act by themselves gives its numbers, within rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from kedit_bench.ability_reading import Reader, Writing
from kedit_core.editing import Editor
from kedit_core.extras import needed
from kedit_core.forward import Pair, PairScore, TokenBoundary, score_pairs
from kedit_core.models import AdapterRegistry
from kedit_core.patches import Route, RoutedModel

EXTRA = "kedit-bench[ability]"
BATCH_TOKENS = 8192


class Asked(Protocol):
    """One question of the harness (its ``Instance``)."""

    @property
    def args(self) -> tuple[Any, ...]:
        """(context, continuation), (text,), or (context, settings of generation)."""


def harness_model(editor: Editor, batch_tokens: int = BATCH_TOKENS) -> Any:
    """A :class:`HarnessModel` that is also an ``lm_eval.api.model.LM``. Raises MissingExtraError without lm_eval."""
    base = needed("lm_eval.api.model", "measuring general ability", EXTRA).LM
    return type("KeditModel", (HarnessModel, base), {})(editor, batch_tokens)


class HarnessModel:
    """Answers the harness's three kinds of questions with an Editor's model as it is now, patches, routers and all.

    Routers are asked about the context, as it stands before a continuation; where there is none, about the text itself.
    What a route puts before a context is read before it, and never scored. A prompt too long for the model loses its
    beginning.

    Args:
        batch_tokens: a batch holds at most so many tokens.
    """

    def __init__(self, editor: Editor, batch_tokens: int = BATCH_TOKENS) -> None:
        super().__init__()
        self._editor = editor
        self._batch_tokens = batch_tokens
        scope = editor.stack.scope
        self._own = Reader(model=editor.model, view=editor.adapter, boundary=editor.tokens, scope=scope)
        self._others: dict[int, tuple[RoutedModel, Reader]] = {}

    def loglikelihood(self, requests: Sequence[Asked], **_: Any) -> list[tuple[float, bool]]:
        """For each (context, continuation) the log-probability of the continuation, and whether it is the greedy one.

        Raises KeditError for a continuation without tokens, or longer than the model.
        """
        asked = [(str(each.args[0]), str(each.args[1])) for each in requests]
        found: dict[int, tuple[float, bool]] = {}
        for reader, rows in self._readers([context or continuation for context, continuation in asked]):
            pairs = [reader.pair(before + asked[index][0], asked[index][1]) for index, before in rows]
            for (index, _before), score in zip(rows, self._scored(reader, pairs), strict=True):
                found[index] = _total(score), score.predicted.tolist() == list(score.target_ids)
        return [found[index] for index in range(len(asked))]

    def loglikelihood_rolling(self, requests: Sequence[Asked], **_: Any) -> list[float]:
        """For each text the log-probability of all its tokens, a text longer than the model in windows.

        Each token is scored once; every window but the first has one token of the text before it.
        """
        texts = [str(each.args[0]) for each in requests]
        found = [0.0] * len(texts)
        for reader, rows in self._readers(texts):
            windows = [(index, pair) for index, before in rows for pair in reader.windows(before, texts[index])]
            scores = self._scored(reader, [pair for _, pair in windows])
            for (index, _pair), score in zip(windows, scores, strict=True):
                found[index] += _total(score)
        return found

    def generate_until(self, requests: Sequence[Asked], **_: Any) -> list[str]:
        """For each (context, settings) what the model writes greedily, up to one of the ``until`` texts.

        Raises KeditError for settings that are not greedy decoding, or that leave no room for the context.
        """
        asked = [(str(each.args[0]), Writing.of(each.args[1])) for each in requests]
        found: dict[int, str] = {}
        for reader, rows in self._readers([context for context, _ in asked]):
            groups: dict[Writing, list[tuple[int, str]]] = {}
            for index, before in rows:
                groups.setdefault(asked[index][1], []).append((index, before + asked[index][0]))
            for writing, members in groups.items():
                texts = reader.written([text for _, text in members], writing, self._batch_tokens)
                found.update({index: text for (index, _), text in zip(members, texts, strict=True)})
        return [found[index] for index in range(len(asked))]

    def _scored(self, reader: Reader, pairs: Sequence[Pair]) -> list[PairScore]:
        return score_pairs(
            reader.model,
            reader.view,
            reader.boundary,
            pairs,
            batch_tokens=self._batch_tokens,
            scope=reader.scope,
        )

    def _readers(self, prompts: Sequence[str]) -> Iterator[tuple[Reader, list[tuple[int, str]]]]:
        """Each model that answers, with the numbers of its prompts and what its route puts before each."""
        once = list(dict.fromkeys(prompts))
        routes: dict[str, Route] = dict(zip(once, self._editor.stack.route(once), strict=True))
        groups: dict[int, tuple[Reader, list[tuple[int, str]]]] = {}
        for index, prompt in enumerate(prompts):
            route = routes[prompt]
            reader = self._own if route.model is None else self._reader_of(route.model)
            groups.setdefault(id(reader), (reader, []))[1].append((index, route.context))
        yield from groups.values()

    def _reader_of(self, routed: RoutedModel) -> Reader:
        # the routed model is kept beside its reader, so that its id stays its own
        if id(routed.model) not in self._others:
            view = AdapterRegistry(self._editor.host.adapters()).for_model(routed.model)
            boundary = TokenBoundary(routed.tokenizer, encoder_decoder=view.is_encoder_decoder)
            self._others[id(routed.model)] = (routed, Reader(model=view.model, view=view, boundary=boundary))
        return self._others[id(routed.model)][1]


def _total(score: PairScore) -> float:
    return float(score.logprobs.to(torch.float64).sum())
