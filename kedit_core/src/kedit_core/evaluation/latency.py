"""What an edit costs while the model is used: seconds for each token that is written, edited and unedited.

Evaluation sheet, section 10 (efficiency): codebooks and routers are asked in every answer, merged weights cost nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from kedit_core.contract import MetricInfo, MetricResult, hookimpl
from kedit_core.evaluation.aggregate import metric_result
from kedit_core.evaluation.efficiency import devices_of, synchronise
from kedit_core.evaluation.metrics import case_of, way_of
from kedit_core.evaluation.tags import Tag
from kedit_core.requests import EditRequest

if TYPE_CHECKING:
    from kedit_core.editing import EditContext
    from kedit_core.evaluation.answers import Answers

GROUP = "latency"


@frozen
class LatencyMetrics:
    """The plugin of group ``latency``: one prompt at a time, as somebody waits for an answer.

    A prompt is read once unmeasured; then answers of one token and of ``tokens`` more are written ``repeats`` times, by
    the edited model and by the base in turn, and the least time of each counts. What is between the two lengths,
    shared out over the tokens, is the time of a token; the time of the one token is that of reading the prompt.

    Attributes:
        prompts: only the edit prompts of so many cases, spread over all of them, are asked.
        tokens, repeats: see above.
    """

    prompts: int = 8
    tokens: int = 32
    repeats: int = 3

    @hookimpl
    def register_metrics(self) -> Sequence[MetricInfo]:
        """Two metrics, each with the base's time and what is added to it as parts."""
        told = {
            "first_token": "wall time of reading a prompt and writing one token, one prompt at a time",
            "per_token": "wall time of every further token",
        }
        return [
            MetricInfo(name=f"{GROUP}.{name}", summary=text, on_request=True, better="lower")
            for name, text in told.items()
        ]

    @hookimpl
    def evaluate(
        self, context: EditContext, requests: Sequence[EditRequest], base: Answers, edited: Answers
    ) -> Mapping[str, MetricResult]:
        """Both times; prompts that leave the model no room for so many tokens are left out."""
        if not context.wants(GROUP):
            return {}
        chosen = list(self._chosen(requests))
        fitting = [request for request in chosen if self._fits(context, request)]
        found: dict[str, dict[str, dict[str, float]]] = {"first_token": {}, "per_token": {}}
        for request in fitting:
            times = self._times(context, request.prompt, {"base": base, "edited": edited})
            for name, of_model in times.items():
                added = of_model["edited"] - of_model["base"]
                found[name][case_of(request)] = {**of_model, "added": added}
        tag = Tag(
            mode=GROUP,
            context=f"{self.tokens}-tokens",
            answer_source="wall-clock",
            scenario=context.scenario,
            n=len(requests),
            way=way_of(context),
        )
        return {
            f"{GROUP}.{name}": metric_result(
                {case: each["edited"] for case, each in of_case.items()},
                tag=str(tag),
                case_parts={part: {case: each[part] for case, each in of_case.items()} for part in ("base", "added")},
                unit="seconds",
                left_out=len(chosen) - len(fitting),
            )
            for name, of_case in found.items()
        }

    def _chosen(self, requests: Sequence[EditRequest]) -> Iterator[EditRequest]:
        """The first request of each of ``prompts`` cases at most, at equal distances."""
        first = list({case_of(request): request for request in reversed(requests)}.values())[::-1]
        step = max(1, -(-len(first) // self.prompts))
        yield from first[::step]

    def _fits(self, context: EditContext, request: EditRequest) -> bool:
        limit = context.adapter.row_limit
        return limit is None or len(context.tokens.prompt(request.prompt).ids) + self.tokens + 1 <= limit

    def _times(self, context: EditContext, prompt: str, readers: Mapping[str, Answers]) -> dict[str, dict[str, float]]:
        """Least seconds: metric -> model -> number."""
        devices = devices_of(context.model)

        def seconds(reader: Answers, tokens: int) -> float:
            synchronise(devices)
            start = time.perf_counter()
            # what is told when to stop is never kept, so it is written anew
            reader.raw_generate([prompt], tokens, stop=lambda _: False, ignore_eos=True)
            synchronise(devices)
            return time.perf_counter() - start

        for reader in readers.values():
            seconds(reader, 2)
        lengths = (1, 1 + self.tokens)
        measured: dict[tuple[str, int], list[float]] = {}
        for _ in range(self.repeats):
            for name, reader in readers.items():
                for length in lengths:
                    measured.setdefault((name, length), []).append(seconds(reader, length))
        least = {key: min(numbers) for key, numbers in measured.items()}
        return {
            "first_token": {name: least[name, 1] for name in readers},
            "per_token": {name: (least[name, lengths[1]] - least[name, 1]) / self.tokens for name in readers},
        }
