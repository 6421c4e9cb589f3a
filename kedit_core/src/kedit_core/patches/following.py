"""Following a model's calls from outside, while a module operation on it needs to know where prompts end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from kedit_core.forward.scope import PromptScope

if TYPE_CHECKING:
    from kedit_core.models import ModelView


class Following:
    """Whether the scope of one model follows calls that do not come from kedit's own tools.

    Attributes:
        view: the model's adapter view; found among the built-in ones when it is needed and was not given.
    """

    def __init__(self, model: nn.Module, scope: PromptScope, view: ModelView | None) -> None:
        self.view = view
        self._model, self._scope = model, scope

    def set(self, needed: bool) -> None:
        """Follow, or stop following."""
        if needed and not self._scope.watching:
            self._scope.attach(self._model, self._bound())
        elif not needed and self._scope.watching:
            self._scope.detach()

    def _bound(self) -> ModelView:
        if self.view is None:
            from kedit_core.models import AdapterRegistry
            from kedit_core.models.builtin import plugin

            self.view = AdapterRegistry(plugin.register_adapters()).for_model(self._model)
        return self.view
