"""Questions of files beside the one that is read: a pool of locality probes, and what two files have in common."""

from __future__ import annotations

import re
from pathlib import Path

from kedit_core.errors import InputError
from kedit_core.requests import Probe
from kedit_datasets.files import digest, json_document, json_records
from kedit_datasets.records import Report

_NAMES = ("src", "input", "prompt")


def natural_questions(path: Path, report: Report) -> list[Probe]:
    """MEND's locality pool, ``{questions: [...], answers: [[...]]}``: each question with its answers, shortest first.

    Questions get a capital letter and a question mark. Raises InputError for a file of another form.
    """
    data = json_document(path)
    report.files[str(path)] = digest(path)
    questions, answers = (data.get(name) if isinstance(data, dict) else None for name in ("questions", "answers"))
    if not isinstance(questions, list) or not isinstance(answers, list) or len(questions) != len(answers):
        raise InputError(f"{path} is no file of natural questions; it needs lists questions and answers, as long each")
    pool = []
    for number, (question, accepted) in enumerate(zip(questions, answers, strict=True)):
        listed = [accepted] if isinstance(accepted, str) else accepted
        if not isinstance(listed, list) or not all(_is_text(each) for each in (question, *listed)):
            raise InputError(f"{path}: question {number} or one of its answers is no text; correct it")
        spelled = sorted({each.strip() for each in listed if each.strip()}, key=lambda each: (len(each), each))
        if question.strip() and spelled:
            pool.append(Probe(prompt=_asked(question.strip()), answers=tuple(spelled)))
        else:
            report.dropped["natural questions without question or answer"] += 1
    if not pool:
        raise InputError(f"{path} has no question with an answer; give MEND's file of natural questions")
    return pool


def questions_of(path: Path, report: Report) -> frozenset[str]:
    """The :func:`normal` questions of a file of ZsRE in whatever form. Raises InputError when there are none."""
    report.files[str(path)] = digest(path)
    records = [record for record in json_records(path) if isinstance(record, dict)]
    found = (record[name] for record in records for name in _NAMES if _is_text(record.get(name)))
    questions = frozenset(map(normal, found)) - {""}
    if not questions:
        raise InputError(f"{path} has no questions ({', '.join(_NAMES)}) to be apart from; give a file of ZsRE")
    return questions


def normal(question: str) -> str:
    """A question as duplicates are told by: its words, whatever the letters' case, spaces and punctuation."""
    return " ".join(re.findall(r"\w+", question.casefold()))


def _asked(question: str) -> str:
    return question[0].upper() + question[1:] + ("" if question.endswith("?") else "?")


def _is_text(value: object) -> bool:
    """Whether it is text that a UTF-8 file can hold (JSON may spell half a character)."""
    return isinstance(value, str) and value == value.encode(errors="ignore").decode()
