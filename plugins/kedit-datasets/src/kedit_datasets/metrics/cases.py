"""What the metrics here share: scores from prompts to cases, and their tags."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from attrs import field, frozen

from kedit_core.evaluation import Tag, way_of
from kedit_core.requests import EditRequest

if TYPE_CHECKING:
    from kedit_core.editing import EditContext


@frozen(eq=False)
class Scores:
    """Scores of prompts, averaged from the inside out: over a request's prompts, then over a case's requests."""

    by_request: dict[tuple[str, int], list[float]] = field(factory=dict)

    def add(self, case: str, request: int, score: float) -> None:
        """The score of one prompt of a request, which is named by its index."""
        self.by_request.setdefault((case, request), []).append(score)

    def means(self) -> dict[str, float]:
        """Case -> mean over its requests of the mean over each one's prompts."""
        by_case: dict[str, list[float]] = {}
        for (case, _), scores in self.by_request.items():
            by_case.setdefault(case, []).append(fmean(scores))
        return {case: fmean(means) for case, means in by_case.items()}

    def sums(self) -> dict[str, float]:
        """Case -> sum over all its prompts."""
        by_case: dict[str, float] = {}
        for (case, _), scores in self.by_request.items():
            by_case[case] = by_case.get(case, 0.0) + sum(scores)
        return by_case


def tag_of(
    context: EditContext,
    requests: Sequence[EditRequest],
    *,
    mode: str,
    surroundings: str = "question-only",
    answer_source: str,
) -> str:
    """The tag of a result over these requests: how it was read, what surrounds the prompt, what it is compared with."""
    return str(
        Tag(
            mode=mode,
            context=surroundings,
            answer_source=answer_source,
            scenario=context.scenario,
            n=len(requests),
            way=way_of(context),
        )
    )
