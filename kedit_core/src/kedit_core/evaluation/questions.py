"""What is asked of a model, and what is found: plain data; and how questions are put together for reading."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

from attrs import field, frozen

from kedit_core.evaluation.text import StopRule

Read: TypeAlias = Callable[[list[Any]], Sequence[Any]]
Known: TypeAlias = dict[tuple[Hashable, Hashable], Any]
SCORE = "score"


@frozen(kw_only=True)
class TargetTokens:
    """The argmax at each position of a target that was fed, and the target's own tokens; as many of each.

    ``text`` is what the predicted tokens spell.
    """

    predicted: tuple[int, ...]
    target: tuple[int, ...]
    text: str


@frozen(kw_only=True)
class Continuation:
    """What was written after a prompt: the text as it follows it, and its tokens, the one that ends it left out."""

    text: str
    tokens: tuple[int, ...]


@frozen
class AnswerKind:
    """The kind of question that greedy answers are: where one ends, and how long it may be."""

    rule: StopRule
    max_new_tokens: int


@frozen
class PromptQuestions:
    """What is asked of one prompt that can be read at once: the scores of targets, and its answer."""

    prompt: str
    targets: tuple[str, ...]
    answered: bool

    def items(self, kind: AnswerKind | None) -> list[tuple[Hashable, Hashable]]:
        """(kind, question) of each, answers being of ``kind``; the answer last."""
        scored: list[tuple[Hashable, Hashable]] = [(SCORE, (self.prompt, target)) for target in self.targets]
        return [*scored, (kind, self.prompt)] if self.answered else scored


ReadPrompts: TypeAlias = Callable[[AnswerKind | None, Sequence[PromptQuestions]], Sequence[Sequence[Any]]]


@frozen(eq=False)
class Questions:
    """What was asked while :meth:`Answers.noting`: kind -> how it is read, and what of it, each once.

    ``read_prompts`` reads several questions about each prompt, in the order of :meth:`PromptQuestions.items`.
    """

    read_prompts: ReadPrompts
    kinds: dict[Hashable, tuple[Read, dict[Hashable, None]]] = field(factory=dict)

    def note(self, kind: Hashable, read: Read, items: Iterable[Hashable]) -> None:
        """Add questions of one kind."""
        self.kinds.setdefault(kind, (read, {}))[1].update(dict.fromkeys(items))

    def items(self, kind: Hashable) -> list[Any]:
        """The questions of one kind."""
        return list(self.kinds[kind][1]) if kind in self.kinds else []

    def without(self, known: Mapping[tuple[Hashable, Hashable], Any]) -> Questions:
        """These questions but for those that are known."""
        left = Questions(self.read_prompts)
        for kind, (read, items) in self.kinds.items():
            if missing := [item for item in items if (kind, item) not in known]:
                left.note(kind, read, missing)
        return left

    def of_prompts(self, kind: AnswerKind | None) -> list[PromptQuestions]:
        """Of each prompt of which more is asked than one thing, its targets' scores and whether its answer of ``kind``
        is asked, too."""
        answered = set(self.items(kind))
        targets: dict[str, list[str]] = {}
        for prompt, target in self.items(SCORE):
            targets.setdefault(prompt, []).append(target)
        each = (PromptQuestions(prompt, tuple(of_it), prompt in answered) for prompt, of_it in targets.items())
        return [one for one in each if len(one.targets) + one.answered > 1]


def read_all(asked: Sequence[Questions], acting: Callable[[list[int]], AbstractContextManager[Any]]) -> list[Known]:
    """The answers to all questions, (kind, question) -> what was found, in few batches; no prompt is read twice for its
    answer and its targets' scores.

    Args:
        asked: several groups of questions, noted by one :class:`Answers`.
        acting: a context in which the texts that are read belong to these groups.
    """
    found: list[Known] = [{} for _ in asked]
    kind = next((kind for each in asked for kind in each.kinds if isinstance(kind, AnswerKind)), None)
    values: Sequence[Any]
    at_once = [(group, one) for group, each in enumerate(asked) for one in each.of_prompts(kind)]
    if at_once:
        with acting([group for group, _ in at_once]):
            values = asked[0].read_prompts(kind, [one for _, one in at_once])
        for (group, one), those in zip(at_once, values, strict=True):
            found[group].update(zip(one.items(kind), those, strict=True))
    left = [each.without(known) for each, known in zip(asked, found, strict=True)]
    reads = {kind: read for questions in left for kind, (read, _) in questions.kinds.items()}
    for other, read in reads.items():
        rows = [(group, item) for group, each in enumerate(left) for item in each.items(other)]
        with acting([group for group, _ in rows]):
            values = read([item for _, item in rows])
        for (group, item), value in zip(rows, values, strict=True):
            found[group][other, item] = value
    return found
