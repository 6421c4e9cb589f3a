"""RippleEdits gives an edit as one statement, "The place of birth of Ada is Oslo."; here it becomes prompt and target.

A statement is its relation's phrase about the subject, a space, the target's label and a full stop. The phrases below
are those that the benchmark's files are written with (its ``src/relation.py``), the subject's place as ``{}``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import frozen

_OF = {
    "MOTHER": "mother",
    "FATHER": "father",
    "BROTHER": "brother",
    "SISTER": "sister",
    "SPOUSE": "spouse",
    "UNCLE": "uncle",
    "AUNT": "aunt",
    "CHILD": "child",
    "COUNTRY_OF_CITIZENSHIP": "country of citizenship",
    "STEPFATHER": "stepfather",
    "STEPMOTHER": "stepmother",
    "ALMA_MATER": "alma mater",
    "EMPLOYER": "employer",
    "FIELD_OF_WORK": "field of work",
    "HEAD_OF_GOVERNMENT": "head of government",
    "HEAD_OF_STATE": "head of state",
    "CAPITAL": "capital city",
    "ANTHEM": "anthem",
    "AUTHOR": "author",
    "EDITOR": "editor",
    "DIRECTOR": "director",
    "SCREENWRITER": "screenwriter",
    "ARCHITECT": "architect",
    "COMPOSER": "composer",
    "FOUNDER": "founder",
}
PHRASES: Mapping[str, str] = {
    **{relation: f"The name of the {noun} of {{}} is" for relation, noun in _OF.items()},
    "SIBLING": "The names of the siblings of {} are",
    "CAST_MEMBER": "The names of the cast members of {} are",
    "NUMBER_OF_CHILDREN": "The number of children {} has is",
    "SEX_OR_GENDER": "The gender of {} is",
    "PLACE_OF_BIRTH": "The place of birth of {} is",
    "PLACE_OF_DEATH": "The place of death of {} is",
    "PLACE_OF_BURIAL": "The place of burial of {} is",
    "DATE_OF_BIRTH": "The date of birth of {} is",
    "DATE_OF_DEATH": "The date of death of {} is",
    "COUNTRY": "The name of the country which {} is associated with is",
    "ETHNIC_GROUP": "The name of the ethnic group which {} is associated with is",
    "RELIGION": "The name of the religion which {} is associated with is",
    "POSITION_HELD": "The name of the position held by {} is",
    "MEMBER_OF_SPORTS_TEAM": "The name of the sports team which {} is a member of is",
    "LEAGUE": "The name of the league which {} plays in is",
    "AWARD_RECEIVED": "The name of the award {} won is",
    "SEXUAL_ORIENTATION": "The sexual orientation of {} is",
    "OCCUPATION": "The occupation of {} is",
    "NATIVE_LANGUAGE": "The mother tongue of {} is",
    "EYE_COLOR": "The eye color of {} is",
    "FOLLOWS": "{} follows",
    "FOLLOWED_BY": "{} is followed by",
    "CONTINENT": "The name of the continent which {} is part of is",
    "CURRENCY": "The name of the currency in {} is",
    "OFFICIAL_LANGUAGE": "The official language of {} is",
    "LIKELY_ANTHEM": "The name of the anthem that is most likely to be performed in {} is",
    "CAPITAL_OF": "The name of the country which {} is the capital of is",
}
_VERBS = (" is followed by", " follows", " are", " is")


@frozen(kw_only=True)
class Statement:
    """An edit's statement in parts; ``how`` says what told them apart: target, subject, original or phrase."""

    prompt: str
    target: str
    how: str
    subject: str | None


def split(
    statement: str, relation: str | None, targets: Iterable[str], subjects: Iterable[str], original: str | None
) -> Statement | None:
    """The parts of a statement, or None where nothing tells them apart for sure.

    Args:
        relation: the benchmark's name of it.
        targets: labels of the target, from answers to queries.
        subjects: labels of the subject, from the prompts of queries about it.
        original: the statement that was true before.
    """
    body = statement.strip().removesuffix(".").rstrip()
    head, tail = _ends(relation)
    known = [label for label in dict.fromkeys(subjects) if label]

    def fits(prompt: str) -> bool:
        return bool(prompt) and body.startswith(f"{prompt} ") and prompt.startswith(head) and prompt.endswith(tail)

    def found(prompt: str, how: str) -> Statement:
        return Statement(
            prompt=prompt, target=body[len(prompt) + 1 :].strip(), how=how, subject=_subject(prompt, relation, known)
        )

    for label in dict.fromkeys(targets):
        prompt = body.removesuffix(f" {label}")
        if label and prompt != body and fits(prompt):
            return found(prompt, "target")
    if relation in PHRASES:
        for label in known:
            prompt = f"{head}{label}{tail}"
            if fits(prompt):
                return found(prompt, "subject")
    if original is not None:
        prompt = _common(body, original.strip().removesuffix("."), tail)
        if fits(prompt):
            return found(prompt, "original")
    if relation in PHRASES and body.count(f"{tail} ") == 1:
        prompt = body[: body.index(f"{tail} ") + len(tail)]
        if fits(prompt) and len(prompt) > len(head) + len(tail):
            return found(prompt, "phrase")
    return None


def subject_of(prompt: str, relation: str | None) -> str | None:
    """The subject in a query's prompt that is its relation's phrase, else None."""
    head, tail = _ends(relation)
    if relation not in PHRASES or not prompt.startswith(head) or not prompt.endswith(tail):
        return None
    return prompt[len(head) : len(prompt) - len(tail)].strip() or None


def _ends(relation: str | None) -> tuple[str, str]:
    head, _, tail = PHRASES.get(relation or "", "{}").partition("{}")
    return head, tail


def _subject(prompt: str, relation: str | None, known: Iterable[str]) -> str | None:
    own = subject_of(prompt, relation)
    if own is not None:
        return own
    return next((label for label in known if label in prompt), None)


def _common(body: str, original: str, tail: str) -> str:
    """What two statements have in common, up to its last verb: their targets may begin with the same words."""
    words: list[str] = []
    for one, other in zip(body.split(" "), original.split(" "), strict=False):
        if one != other:
            break
        words.append(one)
    common = " ".join(words) + " "
    ends = [common.rfind(f"{verb} ") + len(verb) for verb in ((tail,) if tail else _VERBS) if f"{verb} " in common]
    return common[: max(ends)] if ends else ""
