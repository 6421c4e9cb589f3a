"""Written answers for the core's metrics, from wherever they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from attrs import field, frozen

from kedit_core.evaluation import SENTENCE, Answers, StopRule
from kedit_core.forward import TokenBoundary
from kedit_core.models import AdapterRegistry
from kedit_core.models.builtin import ADAPTERS
from kedit_core.patches import RoutedModel


@frozen(eq=False)
class EndpointAnswers:
    """What a metric of written answers asks of :class:`kedit_core.evaluation.Answers`; each prompt is asked once.

    Attributes:
        read: (prompts, length) to what is written after each.
        cut: (rule, text) to the answer in it.
    """

    read: Callable[[Sequence[str], int], list[str]]
    cut: Callable[[StopRule, str], str]
    _known: dict[tuple[str, int], str] = field(factory=dict, init=False)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Questions are read as they come."""
        yield

    def generate(self, prompts: Sequence[str], *, rule: StopRule = SENTENCE, max_new_tokens: int = 50) -> list[str]:
        """As :meth:`kedit_core.evaluation.Answers.generate`."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if (prompt, max_new_tokens) not in self._known]
        found = zip(missing, self.read(missing, max_new_tokens), strict=True)
        self._known.update({(prompt, max_new_tokens): text for prompt, text in found})
        return [self.cut(rule, self._known[prompt, max_new_tokens]) for prompt in prompts]


def answers_of(routed: RoutedModel) -> Answers:
    """Answers of a model that a route names; it runs here."""
    view = AdapterRegistry(ADAPTERS).for_model(routed.model)
    boundary = TokenBoundary(routed.tokenizer, encoder_decoder=view.is_encoder_decoder)
    return Answers(cast(Any, view.model), view, boundary)
