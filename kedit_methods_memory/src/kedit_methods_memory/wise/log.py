"""What a patch says of its rounds: enough to train them again without one of the requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import asdict, evolve, frozen

from kedit_core.errors import PatchFormatError
from kedit_core.requests import EditRequest


@frozen
class Edited:
    """One edit as it was made.

    Attributes:
        irrelevant: the texts it was trained against.
        nll: loss of the target right after its round.
        inside: its routing activation then.
        outside: that of its irrelevant texts then, the largest; None when all were part of its prompt.
        group: how many merges there had been.
    """

    irrelevant: tuple[str, ...]
    nll: float
    inside: float
    outside: float | None
    group: int


@frozen(eq=False)
class Log:
    """All rounds so far.

    Attributes:
        templates: contexts that prompts were trained in.
        requests, edits: of all rounds, in order.
        sizes, steps: of each round, its requests and its training's steps.
    """

    templates: tuple[str, ...] = ()
    requests: tuple[EditRequest, ...] = ()
    edits: tuple[Edited, ...] = ()
    sizes: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()

    def with_round(self, edits: Sequence[Edited], requests: Sequence[EditRequest], steps: int) -> Log:
        """The same after one more round."""
        return evolve(
            self,
            requests=(*self.requests, *requests),
            edits=(*self.edits, *edits),
            sizes=(*self.sizes, len(requests)),
            steps=(*self.steps, steps),
        )

    def pairs(self) -> Iterator[list[tuple[EditRequest, Edited]]]:
        """Round after round, each request with what was done."""
        every = list(zip(self.requests, self.edits, strict=True))
        start = 0
        for size in self.sizes:
            yield every[start : start + size]
            start += size

    def group(self, number: int) -> list[EditRequest]:
        """Requests whose edits came after so many merges."""
        return [request for request, edited in zip(self.requests, self.edits, strict=True) if edited.group == number]

    def groups(self, before: int) -> list[list[EditRequest]]:
        """Requests of each merge before that number."""
        return [self.group(number) for number in range(before)]

    def config(self) -> dict[str, Any]:
        """JSON-able; the requests are kept by the patch itself."""
        return {
            "templates": list(self.templates),
            "edits": [{**asdict(each), "irrelevant": list(each.irrelevant)} for each in self.edits],
            "rounds": list(self.sizes),
            "steps": list(self.steps),
        }

    @classmethod
    def read(cls, config: Mapping[str, Any], requests: Sequence[EditRequest]) -> Log:
        """What :meth:`config` gave. Raises PatchFormatError when it does not fit the requests."""
        try:
            found = cls(
                templates=tuple(config["templates"]),
                requests=tuple(requests),
                edits=tuple(Edited(**{**each, "irrelevant": tuple(each["irrelevant"])}) for each in config["edits"]),
                sizes=tuple(config["rounds"]),
                steps=tuple(config["steps"]),
            )
            fits = len(found.edits) == len(found.requests) == sum(found.sizes)
        except (KeyError, TypeError) as error:
            raise PatchFormatError(f"the patch does not say how its rounds were made ({error})") from error
        if not fits:
            raise PatchFormatError("the patch's log of its rounds is of other requests than those it holds")
        return found
