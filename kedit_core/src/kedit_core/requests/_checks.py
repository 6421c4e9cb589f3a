"""What must hold for a request whatever it was read from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import asdict

from kedit_core.errors import RequestError
from kedit_core.requests._subjects import find_subject, subject_span
from kedit_core.requests._types import KINDS, EditRequest, Probe


def check_requests(requests: Sequence[EditRequest], *, needs_subject: bool = False) -> None:
    """Refuse requests that cannot be used.

    Raises:
        RequestError: every fault of every request, with its number (from 1) and field.
    """
    several = len(requests) > 1
    faults = [
        f"request {number}{_case(request)}, {fault}" if several else fault
        for number, request in enumerate(requests, start=1)
        for fault in (*request_faults(request, needs_subject=needs_subject), *_half_characters(request))
    ]
    if faults:
        raise RequestError("the edit request" + "s" * several, faults)


def request_faults(request: EditRequest, *, needs_subject: bool = False) -> list[str]:
    """One sentence for every fault, each begun with the field it is about.

    Args:
        request: what was given as one; of a request with values of wrong types only those are told.
        needs_subject: whether a subject must be given and occur in the prompt (see ``MethodInfo.needs_subject``).
    """
    if wrong := list(_type_faults(request)):
        return wrong
    faults = [f"{name}: is empty" for name in ("prompt", "target_new") if not getattr(request, name).strip()]
    for name in ("subject", "ground_truth", "case_id"):
        value = getattr(request, name)
        if value is not None and not value.strip():
            faults.append(f"{name}: is empty; leave it out when there is none")
    for name in ("aliases", "rephrase_prompts", "generation_prompts"):
        faults += [f"{name}[{i}]: is empty" for i, text in enumerate(getattr(request, name)) if not text.strip()]
    for group in ("locality", "portability"):
        for name, probes in getattr(request, group).items():
            for i, probe in enumerate(probes):
                faults += [f"{group}.{name}[{i}].{fault}" for fault in _probe_faults(probe)]
    faults += _span_faults(request)
    if request.kind not in KINDS:
        faults.append(f"kind: is {request.kind!r}; it is one of {', '.join(KINDS)}")
    if needs_subject and request.prompt.strip():
        faults += _subject_faults(request)
    return faults


def _type_faults(request: Any) -> Iterator[str]:
    """What a request made in Python has of another type than its fields say; a text where a list belongs, say."""
    if not isinstance(request, EditRequest):
        yield f"is a {type(request).__name__}, expected an EditRequest (request_from_dict makes one of a mapping)"
        return
    for name in ("prompt", "target_new", "kind"):
        yield from _misfit(name, getattr(request, name), str, "text")
    for name in ("subject", "ground_truth", "case_id"):
        yield from _misfit(name, getattr(request, name), (str, type(None)), "text or None")
    for name in ("aliases", "rephrase_prompts", "generation_prompts"):
        yield from _list_faults(name, getattr(request, name), str, "text")
    span = request.subject_span
    if span is not None and not (
        isinstance(span, (tuple, list)) and len(span) == 2 and all(type(each) is int for each in span)
    ):
        yield f"subject_span: is {span!r:.60}, expected two whole numbers, (start, end)"
    for name in ("locality", "portability"):
        groups = getattr(request, name)
        if not isinstance(groups, Mapping):
            yield f"{name}: is a {type(groups).__name__}, expected a mapping: name -> tuple of probes"
            continue
        for key, probes in groups.items():
            yield from _misfit(f"a name in {name}", key, str, "text")
            yield from _list_faults(f"{name}.{key}", probes, Probe, "a Probe")
            for i, probe in enumerate(probes if isinstance(probes, (tuple, list)) else ()):
                if isinstance(probe, Probe):
                    yield from _misfit(f"{name}.{key}[{i}].prompt", probe.prompt, str, "text")
                    yield from _list_faults(f"{name}.{key}[{i}].answers", probe.answers, str, "text")


def _list_faults(path: str, values: Any, kind: type[Any], told: str) -> Iterator[str]:
    if not isinstance(values, (tuple, list)):
        yield f"{path}: is a {type(values).__name__}, expected a tuple, each {told}"
        return
    for i, value in enumerate(values):
        yield from _misfit(f"{path}[{i}]", value, kind, told)


def _misfit(path: str, value: Any, kind: type[Any] | tuple[type[Any], ...], told: str) -> Iterator[str]:
    if not isinstance(value, kind):
        yield f"{path}: is a {type(value).__name__}, expected {told}"


def _half_characters(request: Any) -> Iterator[str]:
    if isinstance(request, EditRequest):
        yield from value_faults(asdict(request, filter=lambda attribute, _: attribute.name != "meta"))


def _case(request: Any) -> str:
    case = getattr(request, "case_id", None)
    return f" (case {case})" if case else ""


def value_faults(value: Any, path: str = "") -> Iterator[str]:
    """Faults of a JSON value whatever it is for: half characters, and numbers that no JSON file can hold."""
    if isinstance(value, str):
        if not _encodable(value):
            yield f"{path}: has half a character (a lone surrogate), which no UTF-8 text can hold"
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{path}: is {value!r}, but numbers must be finite"
    elif isinstance(value, Mapping):
        for key, each in value.items():
            # such a key cannot even be shown
            shown = key if _encodable(key) else ascii(key)
            if shown != key:
                yield f"{path}: has half a character (a lone surrogate) in the key {shown}"
            yield from value_faults(each, f"{path}.{shown}" if path else shown)
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            yield from value_faults(each, f"{path}[{index}]")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _probe_faults(probe: Probe) -> Iterator[str]:
    if not probe.prompt.strip():
        yield "prompt: is empty"
    for answer in probe.answers:
        if not answer.strip():
            yield "ground_truth: has an empty answer"


def _span_faults(request: EditRequest) -> Iterator[str]:
    if request.subject_span is None:
        return
    start, end = request.subject_span
    if not 0 <= start < end <= len(request.prompt):
        yield f"subject_span: is [{start}, {end}], but the prompt has the characters 0 to {len(request.prompt)}"
        return
    covered = request.prompt[start:end]
    if request.subject is not None and covered.strip().casefold() != request.subject.strip().casefold():
        place = find_subject(request.prompt, request.subject)
        hint = f"; the subject is at [{place[0]}, {place[1]}]" if place else ""
        yield f"subject_span: covers {covered!r}, not the subject {request.subject!r}{hint}"


def _subject_faults(request: EditRequest) -> Iterator[str]:
    if request.subject is None and request.subject_span is None:
        yield "subject: is missing, and this method needs one"
    elif request.subject is not None and request.subject.strip() and subject_span(request) is None:
        yield f"subject: {request.subject!r} does not occur in the prompt {request.prompt!r}{_why(request)}"


def _why(request: EditRequest) -> str:
    subject = (request.subject or "").strip()
    if subject in request.prompt:
        return " as a whole word; give its place as subject_span if it is meant"
    if (start := request.prompt.casefold().find(subject.casefold())) >= 0:
        return f" in these letters' case; the prompt has {request.prompt[start : start + len(subject)]!r}"
    return ""
