"""A fact to trace, and where its subject stands among the prompt's tokens."""

from __future__ import annotations

from attrs import frozen

from kedit_core.errors import InputError
from kedit_core.forward import Encoded, TokenBoundary
from kedit_core.requests import EditRequest, find_subject
from kedit_methods_locate.tracing.settings import Occurrence


@frozen(kw_only=True)
class Fact:
    """A prompt whose completion is recalled for a subject.

    Attributes:
        prompt: text that the model completes.
        subject: what the fact is about; whole words of the prompt.
        answer: what the model should say, or None for whatever it says.
        subject_span: characters of the subject in the prompt, where they are known.
        case_id: the caller's name for it.
    """

    prompt: str
    subject: str
    answer: str | None = None
    subject_span: tuple[int, int] | None = None
    case_id: str | None = None

    @classmethod
    def from_request(cls, request: EditRequest) -> Fact:
        """The fact an edit request is about; its ground truth is the answer. Raises InputError without a subject."""
        span = request.subject_span
        if request.subject is None and span is None:
            raise InputError(f"the request {request.prompt!r} has no subject; give one, its words stand in the prompt")
        subject = request.prompt[slice(*span)] if span is not None else request.subject
        return cls(
            prompt=request.prompt,
            subject=subject or "",
            answer=request.ground_truth,
            subject_span=span,
            case_id=request.case_id,
        )


@frozen
class TracedPrompt:
    """The prompt's tokens.

    Attributes:
        ids: ``[T]``, special tokens of the forward pass included.
        tokens: ``[T]`` the characters each one stands for, or the token's own name.
        special: ``[T]`` whether it stands for no character (a beginning-of-sequence token).
        subjects: token ranges of the occurrences that are corrupted, in order.
        occurrences: how often the subject stands in the prompt.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    special: tuple[bool, ...]
    subjects: tuple[range, ...]
    occurrences: int

    @property
    def corrupted(self) -> tuple[int, ...]:
        """The tokens that are corrupted, in order."""
        return tuple(sorted({index for tokens in self.subjects for index in tokens}))


def traced_prompt(boundary: TokenBoundary, fact: Fact, occurrence: Occurrence) -> TracedPrompt:
    """Tokenise a fact's prompt and find the subject by characters.

    Raises:
        InputError: the subject does not stand in the prompt as whole words, or the tokenizer has no offsets.
    """
    everywhere = occurrences(fact.prompt, fact.subject)
    if occurrence == "all":
        spans = everywhere or ([fact.subject_span] if fact.subject_span else [])
    elif fact.subject_span is not None:
        spans = [fact.subject_span]
    else:
        spans = everywhere[:1] if occurrence == "first" else everywhere[-1:]
    if not spans:
        raise InputError(f"the subject {fact.subject!r} does not stand in {fact.prompt!r} as whole words; write it so")
    encoded = boundary.prompt(fact.prompt)
    subjects = tuple(encoded.tokens_of(span) for span in spans)
    bare = [start == end for start, end in encoded.offsets or ()]
    return TracedPrompt(
        ids=encoded.ids,
        tokens=tuple(_token(boundary, encoded, i) for i in range(len(encoded.ids))),
        special=tuple(bare),
        subjects=subjects,
        occurrences=max(len(everywhere), len(spans)),
    )


def occurrences(prompt: str, subject: str) -> list[tuple[int, int]]:
    """Characters of every whole-word occurrence of the subject, first one first; they do not overlap."""
    found: list[tuple[int, int]] = []
    span = find_subject(prompt, subject)
    while span is not None:
        found.insert(0, span)
        span = find_subject(prompt[: span[0]], subject)  # what is cut off began at a border of words
    return found


def _token(boundary: TokenBoundary, encoded: Encoded, index: int) -> str:
    start, end = (encoded.offsets or ())[index]
    text = encoded.text[start:end]
    return text if text else str(boundary.tokenizer.convert_ids_to_tokens(encoded.ids[index]))
