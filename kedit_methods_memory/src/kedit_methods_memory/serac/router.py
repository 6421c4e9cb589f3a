"""The router kind ``serac.scope``: which prompts a counterfactual model answers, decided once, on the prompt alone."""

from __future__ import annotations

from collections.abc import Sequence

from kedit_core.errors import RequirementError
from kedit_core.patches import LiveContext, Route, RouterKind, RouterOperation
from kedit_methods_memory.serac.checkpoint import SeracEditor
from kedit_methods_memory.serac.kept import editor_at
from kedit_methods_memory.serac.memory import KIND, Memory

ROLE = "editor"


class ScopeRouter(RouterKind):
    """Sends a prompt in some edit's scope to the counterfactual model, with that edit's text before it.

    A prompt whose similarity to every entry is at most the threshold gets an empty route, so that the base answers as
    if nothing were there. With ``freeze_cntr`` the route names no model: the live one answers, patches below included.
    The editor's models are loaded when the first prompt comes.
    """

    def __init__(self, operation: RouterOperation, live: LiveContext) -> None:
        super().__init__(operation, live)
        self.memory = Memory.of(operation)
        if ROLE not in live.resources:
            raise RequirementError(f"a {KIND} operation needs an {ROLE} checkpoint; give it with --with {ROLE}=PATH")
        self._editor: SeracEditor | None = None

    @property
    def editor(self) -> SeracEditor:
        """The editor checkpoint, loaded on first use and on the live model's device."""
        device = self.live.device()
        if self._editor is None:
            folder, digest = self.live.resources[ROLE], self.memory.editor.get("sha256", "")
            self._editor = editor_at(self.live.model, folder, digest, device)
        self._editor.to(device)
        return self._editor

    def route(self, prompts: Sequence[str]) -> list[Route]:
        """One route per prompt."""
        if not self.memory.entries:
            return [Route() for _ in prompts]
        editor = self.editor
        return [
            Route() if entry is None else Route(context=entry.context_text, model=editor.counterfactual)
            for entry in self.memory.decide(prompts, editor)
        ]
