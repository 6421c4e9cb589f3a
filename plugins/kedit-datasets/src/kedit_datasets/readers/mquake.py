"""MQuAKE: cases of one to four edits, and multi-hop questions whose answer they change.

Source: Zhong et al., "MQuAKE: Assessing Knowledge Editing in Language Models via Multi-Hop Questions"
(arXiv:2305.14795), ``princeton-nlp/MQuAKE``, ``datasets/*.json``: CF-3k-v2 (the one to use: v1 has conflicts), CF, T.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kedit_core.requests import EditRequest, Probe
from kedit_datasets.readers._splits import split_file
from kedit_datasets.readers._subjects import placed
from kedit_datasets.records import Fields, Json, Loaded, Report, probe, read_records

NAME = "mquake"
_FILES = {
    "CF-3k-v2": "MQuAKE-CF-3k-v2.json",
    "CF-3k": "MQuAKE-CF-3k.json",
    "CF": "MQuAKE-CF.json",
    "T": "MQuAKE-T.json",
}


def read_mquake(path: Path, *, split: str | None = None) -> Loaded:
    """The requests: every rewrite of a case is one, and those of a case share its published id.

    ``meta["mquake"]`` of each request is its place (``edit`` of ``edits``) and its Wikidata ids. What belongs to the
    case as a whole is on its last request: ``portability["multi_hop"]``, the questions, of which the benchmark asks for
    any one (``meta {"any_of": true}``); and in ``meta["mquake"]`` the answers before the edits, ``single_hops`` and
    ``new_single_hops`` (each ``{question, cloze, answer, answer_alias}``) and ``orig``.

    Args:
        path: the file, or the folder it is in.
        split: which file of a folder: ``CF-3k-v2`` (without one), ``CF-3k``, ``CF`` or ``T``.

    Raises:
        InputError: no such split or file, no JSON, or a Git LFS pointer.
        RequestError: every fault, with record and field.
    """
    report = Report(NAME)

    def convert(record: Fields, index: int) -> Sequence[EditRequest]:
        return _case(record, report)

    return read_records(NAME, split_file(path, split, _FILES), convert, report)


def _case(record: Fields, report: Report) -> list[EditRequest]:
    case = str(record.number("case_id"))
    rewrites = record.objects("requested_rewrite")
    if not rewrites:
        raise record.fault("requested_rewrite has no edits")
    questions = record.texts("questions")
    if not questions:
        raise record.fault("questions are missing")
    new_hops = _hops(record, "new_single_hops")
    old_answers, _ = record.answers("answer_extended")
    about_case: dict[str, Json] = {
        "answer": record.text("answer"),
        "answer_alias": list(record.texts("answer_alias")),
        "single_hops": _hops(record, "single_hops"),
        "new_single_hops": new_hops,
    }
    if old_answers:
        about_case["answer_extended"] = list(old_answers)
    triples = record.raw("orig")
    if isinstance(triples, Mapping):
        about_case["orig"] = dict(triples)
    elif triples is not None:
        raise record.fault("orig is no object of triples")
    new_answers = tuple(dict.fromkeys((record.text("new_answer"), *record.texts("new_answer_alias"))))
    asked = tuple(probe(record, question, new_answers, any_of=True) for question in questions)
    last = len(rewrites) - 1
    return [
        _edit(
            rewrite,
            case,
            new_hops,
            {"edit": number, "edits": len(rewrites), **(about_case if number == last else {})},
            asked if number == last else (),
            report,
        )
        for number, rewrite in enumerate(rewrites)
    ]


def _edit(
    rewrite: Fields,
    case: str,
    new_hops: Sequence[Json],
    about: dict[str, Json],
    asked: tuple[Probe, ...],
    report: Report,
) -> EditRequest:
    template, subject = rewrite.text("prompt"), rewrite.text("subject")
    if "{}" not in template:
        raise rewrite.fault("prompt has no {} for the subject")
    prompt = template.replace("{}", subject, 1)
    new, true = rewrite.object("target_new"), rewrite.object("target_true")
    target, questions = new.text("str"), rewrite.texts("question")
    for key, value in (
        ("relation_id", rewrite.optional_text("relation_id")),
        ("target_new_id", new.optional_text("id")),
        ("target_true_id", true.optional_text("id")),
    ):
        if value is not None:
            about[key] = value
    # the file spells an edit's aliases out only where its hop is asked for
    aliases = [
        alias
        for hop in new_hops
        if hop["answer"] == target and (hop["cloze"] == prompt or hop["question"] in questions)
        for alias in hop["answer_alias"]
    ]
    placing = placed(prompt, subject, report)
    placing.pop("meta", None)
    return EditRequest(
        prompt=prompt,
        target_new=target,
        aliases=tuple(dict.fromkeys(alias for alias in aliases if alias != target)),
        ground_truth=true.text("str"),
        case_id=case,
        rephrase_prompts=questions,
        portability={"multi_hop": asked} if asked else {},
        meta={NAME: about},
        **placing,
    )


def _hops(record: Fields, name: str) -> list[dict[str, Json]]:
    return [
        {
            "question": hop.text("question"),
            "cloze": hop.optional_text("cloze"),
            "answer": hop.text("answer"),
            "answer_alias": list(hop.texts("answer_alias")),
        }
        for hop in record.objects(name)
    ]
