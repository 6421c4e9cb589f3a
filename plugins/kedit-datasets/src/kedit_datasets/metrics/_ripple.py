"""Edits of RippleEdits: their tests and conditions, as the dataset's reader keeps them in probes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from kedit_core.errors import InputError
from kedit_core.evaluation import case_of
from kedit_core.requests import EditRequest

MATERIAL = "ripple"
"""Where requests and probes keep it in their ``meta``."""


@frozen(kw_only=True)
class Rule:
    """When a continuation answers: for every target some spelling occurs in it.

    Attributes:
        name: last part of metrics' names; empty for the benchmark's own rule.
        source: as it stands in the tag.
        cased: whether letters' case counts, as in the benchmark.
    """

    name: str
    source: str
    cased: bool

    def holds(self, query: Query, said: Mapping[str, str]) -> bool:
        """Whether what was said to a query answers it."""
        text = said[query.prompt] if self.cased else said[query.prompt].lower()
        return all(
            any((each if self.cased else each.lower()) in text for each in spellings) for spellings in query.targets
        )


RULES = (Rule(name="", source="substring", cased=True), Rule(name="_nocase", source="substring_nocase", cased=False))


@frozen(kw_only=True)
class Query:
    """A prompt, and of each target that is asked for its spellings."""

    prompt: str
    targets: tuple[tuple[str, ...], ...]


@frozen(kw_only=True)
class RippleTest:
    """Queries of which all (``AND``) or any (``OR``) must be right, if the base answers all conditions."""

    criterion: str
    number: int
    condition: str
    conditions: tuple[Query, ...]
    queries: list[Query] = field(factory=list)

    def counts(self, rule: Rule, before: Mapping[str, str]) -> bool:
        """Whether the unedited model answers its conditions."""
        return all(rule.holds(query, before) for query in self.conditions)

    def passes(self, rule: Rule, after: Mapping[str, str]) -> bool:
        """Whether the edited model answers it."""
        right = (rule.holds(query, after) for query in self.queries)
        return any(right) if self.condition == "OR" else all(right)


@frozen(kw_only=True)
class Ripple:
    """An edit with its tests.

    Attributes:
        fact: what it edits.
        original: the fact before; None for a new fact, and where its answer is not known.
        recent: whether it is a new fact.
    """

    case: str
    request: int
    fact: Query
    original: Query | None
    recent: bool
    tests: tuple[RippleTest, ...]

    def skipped(self, rule: Rule, before: Mapping[str, str]) -> bool:
        """Whether there is nothing to edit: a new fact is known already, or the original one is not."""
        if self.recent:
            return rule.holds(self.fact, before)
        return self.original is None or not rule.holds(self.original, before)


def ripples_of(requests: Sequence[EditRequest]) -> list[Ripple]:
    """The edits that have material; raises InputError where it is odd."""
    found: list[Ripple] = []
    for index, request in enumerate(requests):
        about = request.meta.get(MATERIAL)
        if about is None:
            continue
        if not isinstance(about, Mapping):
            raise _fault(request, "an object")
        truth = request.ground_truth
        found.append(
            Ripple(
                case=case_of(request),
                request=index,
                fact=Query(prompt=request.prompt, targets=((request.target_new, *request.aliases),)),
                original=None if truth is None else Query(prompt=request.prompt, targets=((truth,),)),
                recent=request.kind == "insert",
                tests=tuple(_tests(request)),
            )
        )
    return found


def _tests(request: EditRequest) -> Iterator[RippleTest]:
    tests: dict[tuple[str, int], RippleTest] = {}
    for criterion, probes in (*request.locality.items(), *request.portability.items()):
        for probe in probes:
            about = probe.meta.get(MATERIAL)
            if about is None:
                continue
            number = about.get("test") if isinstance(about, Mapping) else None
            if type(number) is not int or about.get("condition") not in ("OR", "AND"):
                raise _fault(request, 'in each probe\'s meta a "test", which is a number, and a "condition", OR or AND')
            test = tests.setdefault(
                (criterion, number),
                RippleTest(
                    criterion=criterion,
                    number=number,
                    condition=about["condition"],
                    conditions=tuple(
                        _query(request, each.get("prompt"), each.get("targets"))
                        for each in about.get("condition_queries", ())
                    ),
                ),
            )
            test.queries.append(_query(request, probe.prompt, about.get("targets")))
    yield from tests.values()


def _query(request: EditRequest, prompt: Any, targets: Any) -> Query:
    listed = tuple(tuple(each) for each in targets) if isinstance(targets, list | tuple) else ()
    spelt = all(each and all(isinstance(text, str) and text for text in each) for each in listed)
    # without a target, or with an empty spelling, every text would be right
    if not isinstance(prompt, str) or not listed or not spelt:
        raise _fault(request, 'for each query a "prompt" and "targets", a list of spellings for each target')
    return Query(prompt=prompt, targets=listed)


def _fault(request: EditRequest, wanted: str) -> InputError:
    return InputError(
        f"the metrics of RippleEdits cannot use meta[{MATERIAL!r}] of case {case_of(request)!r}; it must have {wanted} "
        "(as the dataset ripple_edits gives it)"
    )
