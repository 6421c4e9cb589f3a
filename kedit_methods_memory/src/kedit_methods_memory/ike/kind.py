"""The router kind ``ike.context``: which fact, with which demonstrations, is read before a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from kedit_core.errors import PatchFormatError
from kedit_core.patches import LiveContext, Route, RouterKind, RouterOperation
from kedit_core.requests import load_requests
from kedit_methods_memory import encoders
from kedit_methods_memory.encoders import RecordedEncoder, each_alone
from kedit_methods_memory.ike import corpus
from kedit_methods_memory.ike.memory import Demonstrations, Memory


class FactContext(RouterKind):
    """Puts the nearest fact of its memory before each prompt; below the threshold a prompt passes as it is.

    It needs the encoder only where there is something to compare (several facts, or a threshold); that is loaded for
    the first prompt. Memory: the patch's tensors, and the encoder.
    """

    def __init__(self, operation: RouterOperation, live: LiveContext) -> None:
        super().__init__(operation, live)
        self.memory = Memory.of(operation)
        self._demonstrations = self._open(live)
        for fact in self.memory.facts:  # a patch without a demonstration that it names is refused here, not later
            for each in fact.drawn:
                self._demonstrations.text(each.record, each.kind, each.variant)
        self._encoder: RecordedEncoder | None = None
        if self.memory.asks_encoder:
            folder = live.resources.get(encoders.ROLE)
            self._encoder = RecordedEncoder(self.memory.encoder, folder, live.device())

    def route(self, prompts: Sequence[str]) -> list[Route]:
        """The context of each prompt."""
        return [
            Route() if index is None else Route(context=self._context(index, prompt))
            for prompt, index in zip(prompts, self.chosen(prompts), strict=True)
        ]

    def chosen(self, prompts: Sequence[str]) -> list[int | None]:
        """The number of the fact that is put before each prompt; None where none is."""
        if not self.memory.facts or not prompts:
            return [None] * len(prompts)
        if self._encoder is None:
            return [0] * len(prompts)
        distinct = list(dict.fromkeys(prompts))
        found = dict(zip(distinct, self.memory.best(each_alone(self._encoder, distinct)), strict=True))
        return [found[prompt] for prompt in prompts]

    def _context(self, index: int, prompt: str) -> str:
        return self.memory.context(self.memory.facts[index], prompt, self._demonstrations)

    def _open(self, live: LiveContext) -> Demonstrations:
        source = self.memory.demonstrations
        if source is None or source.get("stored") != "by_hash":
            return corpus.RecordedRecords(self.memory.records)
        path = live.resources.get(corpus.ROLE)
        if path is None:
            raise PatchFormatError(
                "the patch names its demonstrations by hash and does not require their file; it was not made by kedit"
            )
        return corpus.Corpus.of(load_requests(path), source["neighbours"], source["clean_paraphrases"])
