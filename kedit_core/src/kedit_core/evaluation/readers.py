"""The models that answer: the one that is edited, and those that routes on its stack name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from kedit_core.forward import ForwardTools, PromptScope, TokenBoundary
from kedit_core.models import AdapterRegistry, ModelView
from kedit_core.patches import Route, RoutedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kedit_core.patches import PatchStack


@frozen(eq=False, kw_only=True)
class Reader:
    """One model that answers, with what is needed to run it."""

    model: PreTrainedModel
    view: ModelView
    boundary: TokenBoundary
    scope: PromptScope | None = None

    @property
    def tools(self) -> ForwardTools:
        """Tools that run it."""
        return ForwardTools(self.model, self.view, self.boundary, scope=self.scope)

    def same_tokens(self, other: Reader) -> bool:
        """Whether two models mean the same by the same ids."""
        if self is other:
            return True
        sizes = {getattr(each.model.config, "vocab_size", None) for each in (self, other)}
        return len(sizes) == 1 and self.boundary.tokenizer.get_vocab() == other.boundary.tokenizer.get_vocab()


class Readers:
    """Tells which model answers which prompt.

    Args:
        own: the model the stack is on.
        stack: whose routers decide; None when nothing does.
        adapters: for the models that routes name; the built-in ones when None.
    """

    def __init__(self, own: Reader, stack: PatchStack | None, adapters: AdapterRegistry | None) -> None:
        self.own = own
        self._stack = stack
        self._adapters = adapters
        self._others: dict[int, tuple[RoutedModel, Reader]] = {}

    def of(self, prompts: Sequence[str]) -> list[tuple[Reader, list[tuple[int, str]]]]:
        """Each model that answers, with (index, text) of its prompts, their routes' contexts before them."""
        routes: Sequence[Route] = (
            self._stack.route(prompts) if self._stack is not None and prompts else [Route()] * len(prompts)
        )
        groups: dict[int, tuple[Reader, list[tuple[int, str]]]] = {}
        for index, (prompt, route) in enumerate(zip(prompts, routes, strict=True)):
            reader = self.own if route.model is None else self._reader_of(route.model)
            groups.setdefault(id(reader), (reader, []))[1].append((index, route.context + prompt))
        return list(groups.values())

    def _reader_of(self, routed: RoutedModel) -> Reader:
        # the routed model is kept beside its reader, so that its id stays its own
        if id(routed.model) not in self._others:
            view = self._registry().for_model(routed.model)
            boundary = TokenBoundary(routed.tokenizer, encoder_decoder=view.is_encoder_decoder)
            reader = Reader(model=view.model, view=view, boundary=boundary)
            self._others[id(routed.model)] = (routed, reader)
        return self._others[id(routed.model)][1]

    def _registry(self) -> AdapterRegistry:
        if self._adapters is None:
            from kedit_core.models.builtin import ADAPTERS

            self._adapters = AdapterRegistry(ADAPTERS)
        return self._adapters
