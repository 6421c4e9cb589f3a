"""RippleEdits: what follows from an edit, and what must not, each as tests with conditions.

Source: Cohen et al., "Evaluating the Ripple Effects of Knowledge Editing in Language Models" (arXiv:2307.12976),
``edenbiran/RippleEdits``, ``data/benchmark/{recent,random,popular}.json`` (Git LFS).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from kedit_core.requests import EditRequest, Probe
from kedit_datasets.readers._ripple_statements import Statement, split, subject_of
from kedit_datasets.readers._splits import split_file
from kedit_datasets.readers._subjects import placed
from kedit_datasets.records import Dropped, Fields, Json, Loaded, Report, probe, read_records

NAME = "ripple_edits"
LOCALITY = {
    "Relation_Specificity": ("Relation_Specificity", "Relation_Specifity"),
    "Forgetfulness": ("Forgetfulness",),
}
"""Criteria about what must stay, each with its spellings; these have gold answers, unlike other locality probes."""

PORTABILITY = ("Logical_Generalization", "Subject_Aliasing", "Compositionality_I", "Compositionality_II")
TYPES = {
    "recent": "recent",
    "random": "random",
    "popular": "popular",
    "recently_added_fact": "recent",
    "counter_fact": "counterfactual",
}
"""Types of examples, with those of an older writer, as they are kept in ``meta["ripple"]["type"]``."""

_FILES = {name: f"{name}.json" for name in ("popular", "random", "recent")}


def read_ripple(path: Path, *, split: str | None = None) -> Loaded:
    """The requests, one an edit; those of recent facts are insertions.

    Every query of every test is a probe under its criterion's name. ``probe.meta["ripple"]`` tells how to judge tests:
    ``test`` and ``query`` (numbers in the criterion and the test), ``condition`` (``OR`` or ``AND`` over the queries),
    ``targets`` (one list of spellings for each target, all of which a query asks for) and ``condition_queries``
    (``{prompt, targets}``), which the unedited model must answer for the test to count.
    ``request.meta["ripple"]``: ``type``, ``relation``, ``subject_id``, ``target_id``, ``statement``, ``split`` (what
    told prompt and target apart), ``original_fact`` and ``true_answers``, all known spellings of its target.

    As in the benchmark, spellings of one character count only when it is a digit. Targets without a spelling are not
    asked for; left out and counted are statements that cannot be told apart, queries without a target, and tests with a
    condition that has none.

    Args:
        path: the file, or the folder it is in.
        split: which file of a folder: ``popular`` (without one), ``random`` or ``recent``.

    Raises:
        InputError: no such split or file, no JSON, or a Git LFS pointer.
        RequestError: every fault, with record and field.
    """
    report = Report(NAME)

    def convert(record: Fields, index: int) -> Sequence[EditRequest]:
        return [_request(record, index, report)]

    return read_records(NAME, split_file(path, split, _FILES), convert, report)


def _request(record: Fields, index: int, report: Report) -> EditRequest:
    kind = _one_of(record, "example_type", TYPES)
    edit = record.object("edit")
    criteria = {
        name: [test for spelling in spellings for test in record.objects(spelling)]
        for name, spellings in (*LOCALITY.items(), *((name, (name,)) for name in PORTABILITY))
    }
    original = next((edit.object(name) for name in ("original_fact", "previous_fact") if edit.has(name)), None)
    before = None if original is None else original.text("prompt")
    queries = list(_queries(chain.from_iterable(criteria.values())))
    spelled = _spelled(edit.raw("target_id"), queries)
    labels, subjects = [each[0] for each in spelled], _subjects(edit.text("subject_id"), queries)
    statement = split(edit.text("prompt"), edit.text("relation"), labels, subjects, before)
    if statement is None:
        raise Dropped("statements whose target cannot be told")
    probes = {name: _probes(tests, report) for name, tests in criteria.items()}
    placing = placed(statement.prompt, statement.subject, report)
    placing.pop("meta", None)
    about: dict[str, Json] = {
        "type": TYPES[kind],
        "relation": edit.text("relation"),
        "subject_id": edit.text("subject_id"),
        "target_id": edit.raw("target_id"),
        "statement": edit.text("prompt"),
        "split": statement.how,
    }
    if original is not None:
        about["original_fact"] = {name: original.raw(name) for name in original.data}
    truth = _truth(before, statement)
    if original is not None and truth is not None:
        known = chain.from_iterable(_spelled(original.raw("target_id"), queries))
        about["true_answers"] = list(dict.fromkeys((truth, *known)))
    return EditRequest(
        prompt=statement.prompt,
        target_new=statement.target,
        aliases=tuple(text for text in dict.fromkeys(chain.from_iterable(spelled)) if text != statement.target),
        ground_truth=truth,
        case_id=f"{NAME}:{TYPES[kind]}:{index}",
        kind="insert" if TYPES[kind] == "recent" else "modify",
        locality={name: probes[name] for name in LOCALITY if probes[name]},
        portability={name: probes[name] for name in PORTABILITY if probes[name]},
        meta={"ripple": about},
        **placing,
    )


def _truth(original: str | None, statement: Statement) -> str | None:
    if original is None or not original.startswith(f"{statement.prompt} "):
        return None
    return original[len(statement.prompt) :].strip().removesuffix(".").strip() or None


def _one_of(fields: Fields, name: str, known: dict[str, str] | tuple[str, ...]) -> str:
    value = fields.text(name)
    if value not in known:
        raise fields.fault(f"{name} is {value!r}, which is none of {', '.join(known)}")
    return value


def _queries(tests: Iterator[Fields]) -> Iterator[Fields]:
    for test in tests:
        yield from test.objects("test_queries")
        yield from test.objects("condition_queries")


def _spelled(wanted: Json, queries: Sequence[Fields]) -> list[list[str]]:
    """The spellings of a target, label first, as each query has them that asks for it."""
    found: list[list[str]] = []
    for query in queries:
        one_hop_ids, two_hop_ids = query.raw("target_ids"), query.raw("second_hop_target_ids")
        ids = two_hop_ids if query.optional_text("query_type") == "two_hop" else one_hop_ids
        for identity, answer in zip(ids if isinstance(ids, list) else [ids], query.objects("answers"), strict=False):
            if identity is not None and identity == wanted and (spellings := _spellings(answer)):
                found.append(spellings)
    return found


def _subjects(wanted: str, queries: Sequence[Fields]) -> list[str]:
    """Labels of the subject, out of the prompts of one-hop queries about it that are their relation's phrase."""
    found: list[str] = []
    for query in queries:
        kind, relation, about, phrase, _ = (
            query.optional_text(name) for name in ("query_type", "relation", "subject_id", "phrase", "second_relation")
        )
        if kind != "two_hop" and phrase is None and about == wanted:
            found += [label for label in [subject_of(query.text("prompt"), relation)] if label]
    return found


def _probes(tests: Sequence[Fields], report: Report) -> tuple[Probe, ...]:
    probes: list[Probe] = []
    for number, test in enumerate(tests):
        condition = _one_of(test, "test_condition", ("OR", "AND"))
        conditions = [
            {"prompt": query.text("prompt"), "targets": _targets(query)} for query in test.objects("condition_queries")
        ]
        queries = [(query, query.text("prompt"), _targets(query)) for query in test.objects("test_queries")]
        if not all(each["targets"] for each in conditions):
            report.dropped["tests with a condition without an answer"] += 1
            continue
        for place, (query, prompt, targets) in enumerate(queries):
            if not targets:
                report.dropped["queries without an answer"] += 1
                continue
            about = {
                "test": number,
                "query": place,
                "condition": condition,
                "query_type": query.optional_text("query_type"),
                "targets": targets,
                "condition_queries": conditions,
            }
            answers = dict.fromkeys(chain.from_iterable(targets))
            probes.append(probe(query, prompt, tuple(answers), ripple=about))
    return tuple(probes)


def _targets(query: Fields) -> list[list[str]]:
    """The spellings of each target that has any."""
    return [spellings for spellings in map(_spellings, query.objects("answers")) if spellings]


def _spellings(answer: Fields) -> list[str]:
    given = (answer.optional_text("value"), *answer.texts("aliases"))
    return [text for text in dict.fromkeys(given) if text and (len(text) > 1 or text.isdigit())]
