"""Training text as rows of ids of one length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import field, frozen

from kedit_factworld.corpus import pass_groups
from kedit_factworld.world import Statement, World

ALWAYS = 10**9


@frozen
class Row:
    """One row; the three lists are equally long.

    Attributes:
        ids: token ids.
        is_object: whether an id belongs to an object or the full stop after it.
        visible_until: the last position that may look at this one under the subject bottleneck.
    """

    ids: list[int] = field(factory=list)
    is_object: list[bool] = field(factory=list)
    visible_until: list[int] = field(factory=list)

    def add(self, ids: Sequence[int], is_object: bool, reach: Sequence[int] | None = None) -> None:
        """Append ids; ``reach`` says how many positions further each may be seen."""
        start = len(self.ids)
        self.visible_until.extend(start + i + (reach[i] if reach else ALWAYS) for i in range(len(ids)))
        self.ids.extend(ids)
        self.is_object.extend([is_object] * len(ids))

    def cut(self, length: int) -> Row:
        """The first ``length`` ids."""
        return Row(self.ids[:length], self.is_object[:length], self.visible_until[:length])


def subject_reach(prompt: str, subject: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """For each id of the prompt, how far it may be seen: the subject's earlier ids only up to its last one."""
    start = prompt.index(subject)
    end = start + len(subject)
    inside = [i for i, (first, last) in enumerate(offsets) if first < end and last > start and last > first]
    return [inside[-1] - i if i in inside[:-1] else ALWAYS for i in range(len(offsets))]


def packed_rows(world: World, index: int, tokenizer: Any, length: int) -> list[Row]:
    """The documents of a pass as rows; every row starts a document, and the end token separates documents."""
    rows, row = [], Row()
    for group in pass_groups(world, index):
        add_document(row, group, tokenizer)
        if len(row.ids) >= length:
            rows.append(row.cut(length))
            row = Row()
    return rows


def add_document(row: Row, group: Sequence[Statement], tokenizer: Any) -> None:
    """Append one document and the end token."""
    for position, statement in enumerate(group):
        text = " " * (position > 0) + statement.prompt
        prompt = tokenizer(text, return_offsets_mapping=True)
        row.add(prompt["input_ids"], False, subject_reach(text, statement.subject, prompt["offset_mapping"]))
        row.add(tokenizer(f" {statement.object}.")["input_ids"], True)
    row.add([tokenizer.eos_token_id], False)
