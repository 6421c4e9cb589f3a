"""What a SERAC editor is trained on: edits, prompts in their scope, prompts out of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from attrs import field, frozen

from kedit_core.errors import InputError
from kedit_core.requests import EditRequest
from kedit_core.training.records import alternatives, below, case_of
from kedit_methods_memory.hparams.serac import SeracTrainingHyperParams
from kedit_methods_memory.serac.training.negatives import Neighbours

_TRIES = 64  # redraws of a record that must be of another id


@frozen(kw_only=True)
class Record:
    """One edit of the training set.

    Attributes:
        id: records of one id say the same fact, so none is out of another's scope.
        prompt: of the edit; answers: what it may say, one of which is drawn.
        inside: in-scope prompts with the answer they have whatever is drawn; None for the drawn one.
        outside: its own prompts out of scope.
    """

    id: str
    prompt: str
    answers: tuple[str, ...]
    inside: tuple[tuple[str, str | None], ...]
    outside: tuple[str, ...] = ()


@frozen(kw_only=True)
class Draw:
    """One record as drawn for a step: ``edit`` (prompt, target), ``outer`` likewise, a prompt out of scope."""

    record: Record
    edit: tuple[str, str]
    outer: tuple[str, str]
    outside: str


@frozen(kw_only=True)
class ScopeBatch:
    """The batch contract of editors that are trained, in text: models tokenise with tokenizers of their own.

    Attributes:
        edit_inner: (prompt, target) that the editor sees; row i is entry i of a fresh memory.
        edit_outer: (prompt, target) in the scope of the entry that ``pos_pairs`` names.
        pos_pairs: (row of ``edit_outer``, entry) of each positive pair.
        loc: prompts out of scope; row i of entry i at least.
        ids: record of each entry; loc_ids: of each prompt out of scope, None for a record's own probe.
    """

    edit_inner: tuple[tuple[str, str], ...]
    edit_outer: tuple[tuple[str, str], ...]
    pos_pairs: tuple[tuple[int, int], ...]
    loc: tuple[str, ...]
    ids: tuple[str, ...] = field()
    loc_ids: tuple[str | None, ...] = field()

    def prompts_of(self, entry: int) -> tuple[str, ...]:
        """Prompts in the scope of an entry as far as they are in this batch; another id may have one of them too."""
        return (self.edit_inner[entry][0], *(self.edit_outer[row][0] for row, of in self.pos_pairs if of == entry))


def records_of(requests: Sequence[EditRequest], hparams: SeracTrainingHyperParams) -> list[Record]:
    """Records of edit requests: id of the case, the request's prompts, locality probes as prompts out of scope.

    Raises InputError when nothing is left: requests without a prompt that ``outer`` asks for are left out.
    """
    answers = alternatives(requests, hparams.alternatives_from, own_truth=True)
    found = []
    for number, request in enumerate(requests):
        inside: list[tuple[str, str | None]] = []
        if "original" in hparams.outer:
            inside.append((request.prompt, None))
        if "rephrase" in hparams.outer:
            inside += [(prompt, None) for prompt in request.rephrase_prompts if prompt != request.prompt]
        if "portability" in hparams.outer:
            inside += [
                (probe.prompt, probe.answers[0])
                for probes in request.portability.values()
                for probe in probes
                if probe.answers
            ]
        if inside:
            found.append(
                Record(
                    id=case_of(request),
                    prompt=request.prompt,
                    answers=answers[number],
                    inside=tuple(dict.fromkeys(inside)),
                    outside=_outside(request),
                )
            )
    if not found:
        raise InputError(
            f"none of {len(requests)} requests has a prompt of {', '.join(hparams.outer)} to train on; give requests "
            "with rephrase_prompts, or outer: [original]"
        )
    return found


class Drawing:
    """Draws micro-batches of some records.

    Args:
        records: of the training set, two ids at least unless every record has prompts out of scope of its own.
        neighbours: near records by text, for hard negatives; None where none are drawn.

    Raises InputError for records that leave nothing out of scope.
    """

    def __init__(
        self, records: Sequence[Record], hparams: SeracTrainingHyperParams, neighbours: Neighbours | None = None
    ) -> None:
        self.records, self.hparams, self.neighbours = list(records), hparams, neighbours
        alone = len({record.id for record in records}) < 2
        if alone and not (hparams.own_negatives and all(record.outside for record in records)):
            raise InputError("prompts out of scope come from other records; give requests of two cases at least")
        self._inside: dict[str, set[str]] = defaultdict(set)
        for record in records:
            self._inside[record.id] |= {record.prompt, *(prompt for prompt, _ in record.inside)}

    def batch(self, indices: Sequence[int], generator: torch.Generator) -> ScopeBatch:
        """The records of these indices as one micro-batch; all else is drawn with ``generator``."""
        inner: list[tuple[str, str]] = []
        outer: list[tuple[str, str]] = []
        loc: list[str] = []
        loc_ids: list[str | None] = []
        for index in indices:
            record = self.records[index]
            answer = record.answers[below(len(record.answers), generator)]
            prompt, fixed = record.inside[below(len(record.inside), generator)]
            edit, asked = (record.prompt, answer), (prompt, answer if fixed is None else fixed)
            if self.hparams.flip and fixed is None:
                edit, asked = (prompt, answer), (record.prompt, answer)
            text, of = self._outside(index, generator)
            inner.append(edit)
            outer.append(asked)
            loc.append(text)
            loc_ids.append(of)
        return ScopeBatch(
            edit_inner=tuple(inner),
            edit_outer=tuple(outer),
            pos_pairs=tuple((row, row) for row in range(len(inner))),
            loc=tuple(loc),
            ids=tuple(self.records[index].id for index in indices),
            loc_ids=tuple(loc_ids),
        )

    def _outside(self, index: int, generator: torch.Generator) -> tuple[str, str | None]:
        """A prompt out of the scope of a record, and the record it is of; no text that this id has in scope itself."""
        record, hparams = self.records[index], self.hparams
        inside = self._inside[record.id]
        own = [text for text in record.outside if text not in inside] if hparams.own_negatives else []
        if own and (_coin(generator) or all(other.id == record.id for other in self.records)):
            return own[below(len(own), generator)], None
        if self.neighbours is not None and float(torch.rand((), generator=generator)) < hparams.hard_negatives:
            near = self.neighbours.draw(index, generator)
            text = None if near is None else self._prompt_of(near, generator)
            if near is not None and text is not None and text not in inside:
                return text, self.records[near].id
        for _ in range(_TRIES):
            other = below(len(self.records), generator)
            text = self._prompt_of(other, generator)
            if self.records[other].id != record.id and text not in inside:
                return text, self.records[other].id
        # nearly all records are of this id: the same odds over those that are not
        left = [
            (text, other.id, 1 / len(prompts))
            for other in self.records
            if other.id != record.id
            for prompts in [_prompts_of(other)]
            for text in prompts
            if text not in inside
        ]
        if not left and own:
            return own[below(len(own), generator)], None
        if not left:
            raise InputError(f"all records say the same as {record.id!r}; give requests of more cases")
        odds = torch.tensor([share for _, _, share in left], dtype=torch.float64)
        text, of, _ = left[int(torch.multinomial(odds, 1, generator=generator))]
        return text, of

    def _prompt_of(self, index: int, generator: torch.Generator) -> str:
        prompts = _prompts_of(self.records[index])
        return prompts[below(len(prompts), generator)]


def _prompts_of(record: Record) -> list[str]:
    """The prompts that say a record's fact, each once."""
    return list(dict.fromkeys([record.prompt, *(prompt for prompt, _ in record.inside)]))


def _outside(request: EditRequest) -> tuple[str, ...]:
    inside = {request.prompt, *request.rephrase_prompts}
    texts = dict.fromkeys(probe.prompt for probes in request.locality.values() for probe in probes)
    return tuple(text for text in texts if text not in inside)


def _coin(generator: torch.Generator) -> bool:
    return below(2, generator) == 1
