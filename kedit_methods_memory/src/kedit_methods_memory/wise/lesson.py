"""What one round learns from: prompts in their contexts with the new answers, and irrelevant texts.

Specification: WISE, "Batch layout for one edit". Everything below the adapted projection stays as it is while the side
memory is trained, so its inputs and outputs are read once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.editing.checks import row_length
from kedit_core.forward import Batch, ForwardTools, fill, slot
from kedit_core.requests import EditRequest
from kedit_methods_memory.facts import Fact
from kedit_methods_memory.projections import Projection
from kedit_methods_memory.questions import Questions, grouped
from kedit_methods_memory.wise.activation import Phi, moved, pooled
from kedit_methods_memory.wise.answers import Answers
from kedit_methods_memory.wise.templates import BARE


@frozen(eq=False)
class Read:
    """Some rows as the adapted projection sees them, in float32 or wider.

    Attributes:
        value: ``[rows, columns, in]`` its inputs.
        output: ``[rows, columns, out]`` its outputs.
        prompt: ``[rows, columns]`` bool: the tokens that decide about routing.
    """

    value: Tensor
    output: Tensor
    prompt: Tensor

    @classmethod
    def of(cls, forward: ForwardTools, place: Projection, batch: Batch, prompt: Tensor) -> Read:
        """Reads the batch; nothing above the projection is run."""
        found = forward.run(batch, capture=(place.input, place.output)).activations
        value, output = found[place.input], found[place.output]
        wide = torch.promote_types(value.dtype, torch.float32)
        return cls(value.to(wide), output.to(wide), prompt.to(value.device))

    def change(self, delta: Tensor) -> Tensor:
        """``[rows, columns, out]`` what a memory ``[out, in]`` adds."""
        return self.value @ delta.T

    def activations(self, change: Tensor, phi: Phi | None, mask: Tensor | None = None) -> Tensor:
        """``[rows]`` routing activations, over the prompts or over ``mask``."""
        return pooled(moved(self.output, change, phi), self.prompt if mask is None else mask)


@frozen(eq=False)
class Part:
    """Rows of the edits that are run together.

    Attributes:
        rows: their numbers among all edit rows of the round.
        inside: ``[rows, columns]`` bool: where the edit's routing activation is trained to be high.
        outside: ``[rows, columns]`` bool: where it is trained to be low; empty but for subject-style irrelevant texts.
    """

    rows: tuple[int, ...]
    read: Read
    questions: Questions
    answers: Answers
    inside: Tensor
    outside: Tensor

    def losses(self, change: Tensor) -> Tensor:
        """``[rows]`` negative log-likelihood of each row's target (mean over its tokens) with the memory answering."""
        return self.questions.losses(self.answers.logits(change))


@frozen(eq=False)
class Lesson:
    """A round's rows.

    Attributes:
        edit: ``[n]`` which edit each edit row is of.
        parts: the edit rows.
        texts: irrelevant texts as rows; None when all are subject-style.
        subjects: ``[k]`` edit rows that have an ``outside`` of their own.
        pairs: ``[p, 2]`` edit row and irrelevant one; irrelevant rows are those of ``texts``, then ``subjects``.
        of_text: ``[t]`` which edit each row of ``texts`` is of.
    """

    edit: Tensor
    parts: tuple[Part, ...]
    texts: Read | None
    subjects: Tensor
    pairs: Tensor
    of_text: Tensor

    @property
    def edits(self) -> int:
        """How many edits."""
        return int(self.edit.max()) + 1

    @property
    def rows(self) -> int:
        """How many edit rows."""
        return len(self.edit)


@frozen
class Line:
    """An edit row: its edit, its tokens, and the token indices of a subject-style irrelevant text in its prompt."""

    edit: int
    fact: Fact
    subject: range | None


def lines_of(
    forward: ForwardTools, requests: Sequence[EditRequest], templates: Sequence[str], texts: Sequence[Sequence[str]]
) -> list[Line]:
    """Every request behind every template, but where the model has too few positions for that.

    Raises InputError for prompts and targets without tokens.
    """
    tokens, limit, found = forward.boundary, forward.view.row_limit, list[Line]()
    for edit, (request, irrelevant) in enumerate(zip(requests, texts, strict=True)):
        inner = next((text for text in irrelevant if text in request.prompt), None)
        for template in templates:
            prompt = fill(template, request.prompt)
            pair = tokens.pair(prompt, request.target_new)
            subject = None
            if inner is not None:
                start = slot(template) + request.prompt.index(inner)
                subject = tokens.subject_tokens(prompt, (start, start + len(inner)))
            fact = Fact(request.id, pair.prompt_ids, pair.target_ids, pair.target_ids)
            if template == BARE or limit is None or row_length(forward.view, fact.prompt, fact.target) <= limit:
                found.append(Line(edit, fact, subject))
    return found


def lesson_of(
    forward: ForwardTools,
    place: Projection,
    requests: Sequence[EditRequest],
    templates: Sequence[str],
    texts: Sequence[Sequence[str]],
    budget: int | None,
) -> Lesson:
    """The rows of a round, read. ``texts``: irrelevant texts of each request; those in its prompt are subject-style.

    ``budget``: bytes that the rows of one part may take in a step.
    """
    lines = lines_of(forward, requests, templates, texts)
    groups = grouped(forward.view, [line.fact for line in lines], place.layer, budget)
    parts = tuple(_part(forward, place, [lines[i] for i in group], group) for group in groups)
    others = [(edit, text) for edit, each in enumerate(texts) for text in each if text not in requests[edit].prompt]
    subjects = [row for row, line in enumerate(lines) if line.subject is not None]
    edit = [line.edit for line in lines]
    pairs = [(row, number) for number, (of, _) in enumerate(others) for row, mine in enumerate(edit) if mine == of]
    pairs += [(row, len(others) + number) for number, row in enumerate(subjects)]
    return Lesson(
        edit=torch.tensor(edit),
        parts=parts,
        texts=_read_texts(forward, place, [text for _, text in others]),
        subjects=torch.tensor(subjects, dtype=torch.long),
        pairs=torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
        of_text=torch.tensor([of for of, _ in others], dtype=torch.long),
    )


def read_prompts(
    forward: ForwardTools, place: Projection, requests: Sequence[EditRequest], templates: Sequence[str]
) -> Read:
    """Requests' prompts behind every template, without their answers."""
    texts = [fill(template, request.prompt) for request in requests for template in templates]
    found = _read_texts(forward, place, texts)
    if found is None:
        raise ValueError("there are no prompts to read")
    return found


def _part(forward: ForwardTools, place: Projection, lines: Sequence[Line], rows: Sequence[int]) -> Part:
    questions = Questions.of(forward, [line.fact for line in lines])
    batch = questions.batch
    columns = torch.arange(batch.width, device=batch.input_ids.device)
    prompt = columns.unsqueeze(0) <= questions.ends.unsqueeze(1)
    inside, outside = prompt.clone(), torch.zeros_like(prompt)
    for row, line in enumerate(lines):
        if line.subject is not None:
            inside[row] = False
            inside[row, line.subject.start : line.subject.stop] = True
            outside[row] = prompt[row] & ~inside[row]
    read = Read.of(forward, place, batch, prompt)
    device = read.value.device
    return Part(tuple(rows), read, questions, Answers(forward, place, questions), inside.to(device), outside.to(device))


def _read_texts(forward: ForwardTools, place: Projection, texts: Sequence[str]) -> Read | None:
    if not texts:
        return None
    limit = forward.view.row_limit
    batch = forward.batch([forward.boundary.prompt(text).ids[:limit] for text in texts])
    return Read.of(forward, place, batch, batch.attention_mask.bool())
