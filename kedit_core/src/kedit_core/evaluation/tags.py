"""The tag that every number carries: how it was read, what surrounds the prompt, how answers are compared."""

from __future__ import annotations

import re

from attrs import evolve, frozen

from kedit_core.errors import InputError

_TAG = re.compile(r"([^.+]+)\.([^.+]+)\.([^.+]+)\.([^.+]+)\.(\d+)(?:\+([^.+]+))?")


@frozen(kw_only=True)
class Tag:
    """``{mode}.{context}.{answer_source}.{scenario}.{n}`` and ``+{way}`` (specs: evaluation, section 9).

    ``n`` counts edited requests. The way is part of it because merged and attached deltas are different edits in half
    precision; it is None when no patch is on the model.
    """

    mode: str
    context: str
    answer_source: str
    scenario: str
    n: int
    way: str | None = None

    def __str__(self) -> str:
        stem = f"{self.mode}.{self.context}.{self.answer_source}.{self.scenario}.{self.n}"
        return f"{stem}+{self.way}" if self.way else stem

    @classmethod
    def parse(cls, text: str) -> Tag:
        """The tag written in ``text``; raises InputError when it is not one."""
        match = _TAG.fullmatch(text)
        if match is None:
            raise InputError(
                f"{text!r} is not a tag; a tag reads mode.context.answer_source.scenario.n, and +way if a patch was on"
            )
        *names, n, way = match.groups()
        mode, context, answer_source, scenario = names
        return cls(mode=mode, context=context, answer_source=answer_source, scenario=scenario, n=int(n), way=way)

    def counting(self, n: int) -> Tag:
        """The same tag over another number of requests; tags that differ otherwise are never averaged."""
        return evolve(self, n=n)
