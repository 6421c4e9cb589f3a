"""Cases of MQuAKE: what is asked about each, as the dataset's reader keeps it in requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen

from kedit_core.errors import InputError
from kedit_core.evaluation import case_of, exact_match
from kedit_core.requests import EditRequest

MATERIAL = "mquake"
"""Where requests keep it in their ``meta``."""


@frozen(kw_only=True)
class Asked:
    """One prompt and the answers that are right."""

    prompt: str
    answers: tuple[str, ...]

    def right(self, said: Mapping[str, str]) -> bool:
        """Whether what was said to it is one of its answers."""
        return exact_match(said[self.prompt], self.answers)


@frozen(kw_only=True)
class Hop:
    """One fact in its wordings: as a question, and as a text to be completed where there is one."""

    question: Asked
    cloze: Asked | None

    @property
    def wordings(self) -> tuple[Asked, ...]:
        """Question and cloze."""
        return (self.question,) if self.cloze is None else (self.question, self.cloze)

    def right(self, said: Mapping[str, str]) -> bool:
        """Whether any wording is answered right."""
        return any(each.right(said) for each in self.wordings)


@frozen(kw_only=True)
class Case:
    """A case's rewrites, single hops before and after, and the multi-hop questions with both answers."""

    name: str
    rewrites: list[Asked] = field(factory=list)
    old_hops: list[Hop] = field(factory=list)
    new_hops: list[Hop] = field(factory=list)
    old_questions: list[Asked] = field(factory=list)
    new_questions: list[Asked] = field(factory=list)

    def asked(self, of_base: bool) -> list[Asked]:
        """What a model is asked: the base about what was, the edited one about what is."""
        hops = self.old_hops if of_base else self.new_hops
        rest = self.old_questions if of_base else [*self.rewrites, *self.new_questions]
        return [*rest, *(wording for hop in hops for wording in hop.wordings)]


def cases_of(requests: Sequence[EditRequest]) -> list[Case]:
    """The cases that have material, each of all its requests; raises InputError where it is odd."""
    cases: dict[str, Case] = {}
    for request in requests:
        if (about := request.meta.get(MATERIAL)) is None:
            continue
        if not isinstance(about, Mapping):
            raise _fault(request, "an object")
        case = cases.setdefault(case_of(request), Case(name=case_of(request)))
        case.rewrites.append(Asked(prompt=request.prompt, answers=(request.target_new, *request.aliases)))
        case.old_hops.extend(_hops(request, about, "single_hops"))
        case.new_hops.extend(_hops(request, about, "new_single_hops"))
        old = _answers(about, "answer", "answer_alias", "answer_extended")
        for probe in (each for listed in request.portability.values() for each in listed):
            if probe.meta.get("any_of"):
                case.new_questions.append(Asked(prompt=probe.prompt, answers=probe.answers))
                if old:
                    case.old_questions.append(Asked(prompt=probe.prompt, answers=old))
    return list(cases.values())


def _hops(request: EditRequest, about: Mapping[str, Any], name: str) -> list[Hop]:
    found: list[Hop] = []
    for hop in about.get(name, ()):
        question = hop.get("question") if isinstance(hop, Mapping) else None
        answers = _answers(hop, "answer", "answer_alias") if question else ()
        if not isinstance(question, str) or not answers:
            raise _fault(request, f'"{name}", each with a "question" and an "answer"')
        cloze = hop.get("cloze")
        found.append(
            Hop(
                question=Asked(prompt=question, answers=answers),
                cloze=Asked(prompt=cloze, answers=answers) if cloze else None,
            )
        )
    return found


def _answers(about: Mapping[str, Any], name: str, *lists: str) -> tuple[str, ...]:
    first = about.get(name)
    rest = [text for each in lists for text in about.get(each) or ()]
    return tuple(text for text in (first, *rest) if isinstance(text, str) and text)


def _fault(request: EditRequest, wanted: str) -> InputError:
    return InputError(
        f"the metrics of MQuAKE cannot use meta[{MATERIAL!r}] of case {case_of(request)!r}; it must have {wanted} "
        "(as the dataset mquake gives it)"
    )
